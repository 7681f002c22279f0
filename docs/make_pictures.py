"""Make every picture of README and site, from built-in data: `make pictures`, some minutes on two cores.

The runs are kept in `build/gallery`: a second call trains nothing. `docs/gallery.md` shows what each command made.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from segdistill import build_dataset, load_config, load_student
from segdistill.report.figures import style

ROOT = Path(__file__).parent.parent
RUNS, OUT = ROOT / "build/gallery", ROOT / "docs/gallery"
PANEL, GAP, HEAD = (288, 192), 12, 34
GREY, TEAL = "#7d8590", "#1f8a95"
"""Of texts and of the student: to be read on white and on black."""
COMMANDS = re.findall(r"^segdistill .*?(?<!\\)$", (ROOT / "docs/gallery.md").read_text("utf-8"), re.M | re.S)


def main() -> None:
    """Carry out the commands of `docs/gallery.md`, and draw what they have left."""
    OUT.mkdir(exist_ok=True)
    for command in COMMANDS:
        words = shlex.split(command.replace("\\\n", " "))
        if words[1] != "serve":
            subprocess.run([sys.executable, "-m", "segdistill", *words[1:]], cwd=ROOT, check=True)
    page = OUT / "report/index.html"
    page.write_text(page.read_text("utf-8").replace(f"{ROOT}/", ""), "utf-8")
    shutil.copy(RUNS / "formats.png", OUT / "formats.png")
    shutil.copy(ROOT / "benchmarks/results/growth.png", OUT / "growth.png")
    sheet = Image.open(RUNS / "data.png")
    sheet.resize((1200, round(1200 * sheet.height / sheet.width))).save(OUT / "data.webp", quality=82, method=6)
    result = json.loads((RUNS / "compare.json").read_text("utf-8"))
    scene = draw_scene(result)
    draw_plot(result)
    (serve,) = (shlex.split(command.replace("\\\n", " ")) for command in COMMANDS if " serve " in command)
    photograph_page(serve[1:], scene)
    for path in sorted(OUT.rglob("*.*")):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def run_of(result: dict[str, Any], method: str) -> Path:
    """The folder of a method's first run."""
    return RUNS / next(run["folder"] for run in result["runs"] if run["method"] == method)


@torch.no_grad()
def see(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Class numbers of one image of bytes."""
    return network(image[None] / 255)[0].argmax(0)


def draw_scene(result: dict[str, Any]) -> int:
    """Draw image, truth, teacher, baseline and student in a row; the number of the scene.

    Of the scenes in which at least nine classes are seen it is the one where distillation gained as much as it did in
    half of them: neither a lucky one nor an unlucky one.
    """
    options = load_config(run_of(result, "kd") / "config.yaml").data.options
    scenes = build_dataset("synthetic", result["split"], **options)
    folders = {"teacher": RUNS / "teacher", "student alone": run_of(result, "none"), "distilled": run_of(result, "kd")}
    networks = {name: load_student(folder).eval() for name, folder in folders.items()}
    gains = {}
    for number in range(len(scenes)):
        image, mask = scenes[number]
        if len(mask.unique()) >= 9:
            right = {name: float((see(networks[name], image) == mask).float().mean()) for name in networks}
            gains[number] = right["distilled"] - right["student alone"]
    number = sorted(gains, key=gains.__getitem__)[len(gains) // 2]
    image, mask = scenes[number]
    palette = np.array(scenes.palette, np.uint8)
    panels = {"image": Image.fromarray(image.permute(1, 2, 0).numpy()), "truth": Image.fromarray(palette[mask])}
    panels |= {name: Image.fromarray(palette[see(network, image)]) for name, network in networks.items()}
    row(panels).save(OUT / "scene.webp", quality=88, method=6)
    return number


def row(panels: dict[str, Image.Image]) -> Image.Image:
    """Pictures side by side under their names, on nothing."""
    width, height = PANEL
    whole = Image.new("RGBA", (len(panels) * (width + GAP) - GAP, height + HEAD))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(24)
    for place, (name, picture) in enumerate(panels.items()):
        how = Image.Resampling.BICUBIC if name == "image" else Image.Resampling.NEAREST
        whole.paste(picture.resize(PANEL, how), (place * (width + GAP), HEAD))
        pen.text((place * (width + GAP) + width // 2, HEAD // 2 - 2), name, fill=GREY, font=font, anchor="mm")
    return whole


def draw_plot(result: dict[str, Any]) -> None:
    """Draw each method's mIoU: a point per seed, their mean, and the interval of the difference from the baseline.

    It is the interval over seeds, or with fewer than three of them, which say too little, over images.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    (teacher,) = result["teachers"].values()
    rows = sorted(result["rows"], key=lambda entry: not entry["baseline"])
    alone = rows[0]["miou"]
    key, over = ("difference", "seeds") if min(entry["runs"] for entry in rows) > 2 else ("bootstrap", "images")
    with style(), mpl.rc_context({"svg.fonttype": "path", "font.size": 10, "text.color": GREY}):
        figure = Figure(figsize=(7.2, 0.62 * len(rows) + 1.1), layout="tight")
        axes = figure.subplots()
        for height, entry in enumerate(rows):
            colour = GREY if entry["baseline"] else TEAL
            axes.plot([100 * miou for miou in entry["mious"]], [height] * entry["runs"], "o", ms=5, alpha=0.5, c=colour)
            axes.plot(100 * entry["miou"], height, "|", ms=22, mew=2.5, color=colour)
            told = entry.get(key) or {}
            if not entry["baseline"] and told.get("low") is not None:
                ends = [100 * (alone + told[end]) for end in ("low", "high")]
                axes.plot(ends, [height - 0.28] * 2, lw=2.5, color=colour, solid_capstyle="butt")
                text = f"{100 * told['difference']:+.1f}  [{100 * told['low']:+.1f}, {100 * told['high']:+.1f}]"
                axes.text(sum(ends) / 2, height - 0.42, text, ha="center", va="top", color=colour)
        axes.axvline(100 * alone, color=GREY, lw=0.8, ls=":")
        axes.axvline(100 * teacher["miou"], color=GREY, lw=1.2, ls="--")
        axes.text(100 * teacher["miou"], len(rows) - 0.45, "teacher ", ha="right", va="center")
        names = ["student alone" if entry["baseline"] else f"distilled, {entry['method']}" for entry in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.5, len(rows) - 0.3)
        note = f"{result['split']} mIoU, %: seeds and their mean; below, the difference, 95 % over {over}"
        axes.set_xlabel(note)
        axes.tick_params(colors=GREY)
        axes.xaxis.label.set_color(GREY)
        axes.grid(visible=False)
        figure.savefig(OUT / "miou.svg", transparent=True, metadata={"Date": None})


def photograph_page(words: list[str], scene: int) -> None:
    """Start `segdistill serve`, choose a scene on its page, and save what a browser shows, in light and dark."""
    sys.path.insert(0, str(ROOT / "tests"))
    from chromium import Tab  # the browser that tests drive

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("the page of `segdistill serve` needs Chromium: apt-get install chromium")
    command = [sys.executable, "-m", "segdistill", *words]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                raise SystemExit(f"no server: {said}")
            said += line
        with Tab(browser, RUNS / "browser") as tab:
            for name, dark in (("serve", False), ("serve_dark", True)):
                tab.screen(1200, 1480, dark=dark)  # all of it: a scrollbar would cut the edge
                tab.open(f"{found.group()}/")
                tab.wait("document.querySelectorAll('#models li').length === 3")
                choose = f"const s = document.querySelector('#sample'); s.value = '{min(scene, 99)}'"
                tab.evaluate(f"(() => {{ {choose}; s.dispatchEvent(new Event('change')); }})()")
                tab.wait("document.querySelectorAll('#maps figure').length === 6")
                tab.picture(RUNS / f"{name}.png")
                Image.open(RUNS / f"{name}.png").convert("RGB").save(OUT / f"{name}.webp", quality=82, method=6)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
