"""How costs grow with the work: each method's loss, reports and tables of many runs, data sets of many images.

    python benchmarks/growth.py [--quick] [--only losses runs images] [--images N …] [--wall]

Each quantity grows by itself while the others stay. An exponent is the slope of a straight line through the points of
a double-logarithmic plot: 1 is as fast as the quantity, 2 its square. All times are processor time of one thread,
unless `--wall` is given, so that they hold on a machine that others use. Files of data sets are links to a few small
ones in a temporary folder, which is deleted.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from _measure import RESULTS, Clock, Work, machine, seconds
from segdistill.comparison.plan import load_plan
from segdistill.comparison.result import counts_path, evaluation_path, gather
from segdistill.comparison.table import markdown
from segdistill.data.check import check_dataset, quick_check
from segdistill.data.sampler import train_loader
from segdistill.data.sets.folder import Folder
from segdistill.data.transforms import TrainTransform
from segdistill.data.walk import searched_once
from segdistill.methods import build_method
from segdistill.report import write_report

METHODS = {
    "kd": "kd",
    "cwd": "cwd",
    "mimic": "mimic",
    "at": "at",
    "local": "local",
    "pair": {"name": "skd", "pixel_weight": 0.0, "holistic_weight": 0.0},
    "ifvd": "ifvd",
    "cirkd": "cirkd",
    "cirkd memory": {"name": "cirkd", "pixel_weight": 0.0, "mini_batch_weight": 0.0},
    "fakd": "fakd",
    "fakd (kd)": {"name": "fakd", "base": "kd"},
    "i2ckd": "i2ckd",
    "sstkd": "sstkd",
    "dist": "dist",
    "bpkd": "bpkd",
    "jml": "jml",
}

AXES: dict[str, tuple[int, ...]] = {
    "pixels": (24 * 24, 48 * 48, 96 * 96),
    "classes": (19, 150, 171),
    "channels": (64, 128, 256),
    "batch": (2, 4, 8),
    "queue": (2_000, 20_000, 80_000),
}
"""What grows; the figures in the middle of `BASE` are those of the others."""

BASE = {"pixels": 48 * 48, "classes": 19, "channels": 64, "batch": 2, "queue": 2_000}

ALLOWED = {
    ("pixels", "cirkd"): 2.0,  # each pixel is compared with each one of the batch
    ("batch", "cirkd"): 2.0,
    ("channels", "cirkd memory"): 2.0,  # a projector from channels to channels
    ("channels", "cirkd"): 2.0,
    ("channels", "pair"): 2.0,  # products of channels by channels
    ("channels", "mimic"): 2.0,
    ("channels", "sstkd"): 2.0,
    ("classes", "fakd (kd)"): 2.0,  # each class is compared with each other one
}
"""Exponents of the work itself where it is no 1."""


def taps(pixels: int, classes: int, channels: int, batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the networks would show, and labels at eight times the map's size."""
    side = math.isqrt(pixels)

    def network(width: int) -> dict[str, Tensor]:
        logits = torch.randn(batch, classes, side, side)
        return {
            "image": torch.rand(batch, 3, 8 * side, 8 * side),
            "low1": torch.randn(batch, width // 2, 2 * side, 2 * side),
            "low2": torch.randn(batch, width, side, side),
            "features": torch.randn(batch, width, side, side),
            "undropped": torch.randn(batch, width, side, side),
            "logits": logits,
            "weight": torch.randn(classes, width) / width**0.5,
        }

    squares = torch.randint(0, classes, (batch, max(1, side // 8), max(1, side // 8)))
    labels = torch.nn.functional.interpolate(squares[:, None].float(), size=(8 * side, 8 * side))[:, 0].long()
    return network(channels), network(2 * channels), labels


def loss_work(spec: Any, queue: int, **sizes: int) -> Work:
    """Forward and backward of a method's terms."""
    torch.manual_seed(0)
    whole = {"name": spec} if isinstance(spec, str) else dict(spec)
    if whole["name"] == "cirkd":
        whole |= {"pixel_memory": queue, "region_memory": max(1, queue // 10)}
    method = build_method(whole)
    student, teacher, labels = taps(**sizes)
    method.adapt(student, teacher)
    names = method.student_taps() - {"image", "output"}
    for module in method.modules():  # full queues are the usual case
        if hasattr(module, "written"):
            module.vectors.normal_()
            module.written.fill_(module.vectors.shape[1])
    for name in names:
        student[name].requires_grad_()

    def work() -> None:
        terms = method(student, teacher, labels, 0.5)
        torch.stack(list(terms.values())).sum().backward()
        method.zero_grad()
        for name in names:
            student[name].grad = None

    return work


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through the points in a double-logarithmic plot."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def losses(quick: bool) -> list[dict[str, Any]]:
    """Time of each method's loss against each quantity."""
    rows = []
    for axis, sizes in AXES.items():
        sizes, base = ((sizes[0], sizes[-1]), BASE | {"pixels": 256, "channels": 16}) if quick else (sizes, BASE)
        if quick and axis == "pixels":
            sizes = (64, 256)
        for name, spec in METHODS.items():
            if axis == "queue" and not name.startswith("cirkd"):
                continue
            works = [loss_work(spec, **(base | {axis: size})) for size in sizes]
            times: list[list[float]] = [[] for _ in works]
            for round_ in range(2 if quick else 6):
                for i in range(len(works)) if round_ % 2 else reversed(range(len(works))):
                    spent = seconds(works[i])
                    if round_:
                        times[i].append(1e3 * spent)
            ms = [statistics.median(t) for t in times]
            allowed = 0.0 if axis == "queue" else ALLOWED.get((axis, name), 1.0)
            rows.append(row(axis, name, sizes, ms, "ms", allowed))
    return rows


def row(axis: str, name: str, sizes: Sequence[int], values: list[float], unit: str, allowed: float) -> dict[str, Any]:
    """One curve with its exponent; a little more than allowed is what small times and rounding make of it."""
    slope = exponent(sizes, values)
    return {
        "axis": axis, "name": name, "sizes": list(sizes), "values": values, "unit": unit, "exponent": slope,
        "allowed": allowed, "met": slope <= allowed + 0.25,
    }  # fmt: skip


def make_run(folder: Path, method: str, seed: int, split: str, level: float) -> None:
    """A finished run as training and evaluation leave it."""
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(19)]
    config = {
        "data": {"name": "synthetic", "size": [32, 32], "images": 20, "batch_size": 4},
        "student": {"name": "pspnet_resnet18_quarter"},
        "method": [{"name": method}],
        "train": {"steps": 2000, "seed": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    scores = {"miou": level, "macc": level, "pixel_accuracy": level, "iou": dict.fromkeys(names, level)}
    lines = [
        {"step": s, "loss": 3 / s, "ce": 2 / s, "lr": 0.1, "grad_norm": 1.0, "images_per_s": 9.0, "data_wait": 0.1,
         "memory_mb": 100.0}
        for s in range(10, 2001, 10)
    ]  # fmt: skip
    lines += [{"step": 2000, "val_miou": level, "val_macc": level, "val_pixel_accuracy": level}]
    lines[-1]["val_iou"] = scores["iou"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs = {"params": 700_000, "flops": 7e9, "flops_size": [32, 32], "steps": 2000, "best_step": 2000}
    summary = {**scores, **costs, "seconds": 60.0, "peak_memory": 1e8, "seed": seed, "method": [method]}
    (folder / "summary.json").write_text(json.dumps({**summary, "student": "pspnet_resnet18_quarter"}))
    evaluation_path(folder, split).write_text(json.dumps(scores))
    truth = torch.arange(20 * 11).view(20, 11) % 90 + 10  # the same images for every run
    right = (truth * torch.rand(truth.shape)).long()
    counts = torch.stack([right, truth, right + torch.randint(1, 50, truth.shape)], 1)
    save_file({"counts": counts}, counts_path(folder, split))


def runs(quick: bool) -> list[dict[str, Any]]:
    """The report and the table of comparisons of many runs."""
    numbers = (1, 4) if quick else (1, 20, 200)
    reports, tables, readings = [], [], []
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            methods = ["none", "kd"][: min(2, number)]
            source = {
                "data": {"name": "synthetic", "size": [32, 32], "images": 20, "batch_size": 4},
                "student": {"name": "pspnet_resnet18_quarter"},
                "methods": methods,
                "seeds": max(1, number // 2),
                "teacher": {"checkpoint": "/nowhere"},
            }
            plan = None
            spent = timed(lambda s=source, f=folder: load_plan(s, out=f))
            plan = load_plan(source, out=folder)
            for cell in plan.runs:
                level = 0.5 + 0.01 * (cell.method != "none") + 0.001 * cell.seed
                make_run(cell.folder, cell.method, cell.seed, plan.options.split, level)
            readings.append(spent)
            tables.append(timed(lambda p=plan: markdown(gather(p, {}, {}, FACTS))))
            paths, out = [cell.folder for cell in plan.runs], Path(folder) / "report"
            reports.append(timed(lambda p=paths, o=out: write_report(p, out=o, images=0, say=lambda line: None)))
    return [
        row("runs", "plan", numbers, readings, "s", 1.0),
        row("runs", "table", numbers, tables, "s", 1.0),
        row("runs", "report", numbers, reports, "s", 1.0),
    ]


def timed(work: Callable[[], object]) -> float:
    """Time of one run."""
    began = Clock.read()
    work()
    return Clock.read() - began


FACTS = {"jobs": 1, "measured": {}, "environment": {}}
"""What a comparison says beside its figures."""

LINKS = 30_000
"""Names of one file; file systems allow some tens of thousands."""


def make_images(root: Path, count: int) -> None:
    """Images and masks of 16×16, a thousand in a folder."""
    pixels = np.random.default_rng(0).integers(0, 2, (16, 16), np.uint8)
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        template = root.parent / f"{root.name}.{suffix}"
        for number in range(count):
            if number % LINKS == 0:
                template.unlink(missing_ok=True)
                Image.fromarray(pixels if kind == "masks" else np.stack([100 * pixels] * 3, 2)).save(template)
            if number % 1000 == 0:
                folder = root / kind / f"{number // 1000:04d}"
                folder.mkdir(parents=True)
            os.link(template, folder / f"{number:07d}.{suffix}")
        template.unlink()


def start_up(root: Path, check: bool) -> dict[str, float]:
    """What a training does with its data before the first step, and what `data check` does."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, float] = {}

    def index() -> None:
        with searched_once():
            found["sets"] = [Folder(split, root=str(root), classes=["a", "b"]) for split in ("train", "val")]  # type: ignore[assignment]

    def first() -> None:
        transform = TrainTransform(crop=(16, 16), scale=(1.0, 1.0))
        next(iter(train_loader(train, transform, batch_size=4, steps=10)))

    began, wall = Clock.read(), time.perf_counter()
    found["index"] = timed(index)
    train, val = found.pop("sets")  # type: ignore[misc]
    found["quick check"] = timed(lambda: [quick_check(train), quick_check(val)])
    found["first batch"] = timed(first)
    found["start"], found["wall"] = Clock.read() - began, time.perf_counter() - wall
    found["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if check:
        found["check"] = timed(lambda: check_dataset(train))
    return found


def images(numbers: Sequence[int], wall: bool) -> list[dict[str, Any]]:
    """Start-up and check of data sets of many images; each in a process of its own, whose memory is measured."""
    rows: list[dict[str, float]] = []
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="growth-"))
        try:
            make_images(folder / "set", number)
            command = [
                sys.executable,
                __file__,
                "--start-up",
                str(folder / "set"),
                "--check",
                str(int(number <= 10_000)),
            ]
            done = subprocess.run([*command, *(["--wall"] if wall else [])], capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{number} images: {rows[-1]}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder)
    result = [
        row("images", name, numbers, [found[name] for found in rows], "MB" if name == "MB" else "s", 1.0)
        for name in ("index", "quick check", "first batch", "start", "MB")
    ]
    for entry in result[-2:]:
        limit = 1024 if entry["name"] == "MB" else 10
        entry |= {"limit": limit, "met": entry["met"] and max(entry["values"]) <= limit}
    checked = [(n, found["check"]) for n, found in zip(numbers, rows, strict=True) if "check" in found]
    if len(checked) > 1:
        result.append(row("images", "data check", *map(list, zip(*checked, strict=True)), "s", 1.0))
    return result


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each quantity that grows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = list(dict.fromkeys(entry["axis"] for entry in rows))
    columns = min(2, len(axes))
    lines = -(-len(axes) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(6.5 * columns, 3.8 * lines))
    for panel in np.ravel(panels)[len(axes) :]:
        panel.remove()
    for panel, axis in zip(np.ravel(panels), axes, strict=False):
        own = [entry for entry in rows if entry["axis"] == axis and entry["unit"] != "MB"]
        colours = plt.get_cmap("tab20")
        for number, entry in enumerate(own):
            label = f"{entry['name']} {entry['exponent']:.2f}"
            panel.plot(entry["sizes"], entry["values"], "o-", ms=3, lw=1.2, color=colours(number % 20), label=label)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=own[0]["unit"], title=f"against {axis}")
        panel.set_xticks(own[0]["sizes"], [f"{size:,}".replace(",", " ") for size in own[0]["sizes"]], fontsize=7)
        panel.minorticks_off()
        values = [value for entry in own for value in entry["values"]]
        panel.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
        panel.legend(
            fontsize=7, frameon=False, title="exponent", title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1)
        )
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the exponents."""
    for entry in rows:
        values = "  ".join(f"{value:.4g}" for value in entry["values"])
        missed = "" if entry["met"] else "  MISSED"
        bound = f"exponent {entry['exponent']:5.2f} ≤ {entry['allowed']:.0f}"
        print(f"{entry['axis']:9} {entry['name']:14} {bound}   {values} {entry['unit']}{missed}")


def main() -> None:
    """Measure, print, write `results/growth.json` and `growth.png` (a quick or partial run is not written)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does it run?")
    parser.add_argument("--only", nargs="+", choices=("losses", "runs", "images"), default=["losses", "runs", "images"])
    parser.add_argument("--images", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--wall", action="store_true", help="wall clock, not processor time")
    parser.add_argument("--out", type=Path, help="folder for JSON and figure, of a partial run too")
    parser.add_argument("--start-up", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    Clock.choose(argparse.Namespace(cpu_time=not arguments.wall))
    torch.set_num_threads(1)
    if arguments.start_up:
        print(json.dumps(start_up(arguments.start_up, bool(arguments.check))))
        return
    rows: list[dict[str, Any]] = []
    if "losses" in arguments.only:
        rows += losses(arguments.quick)
    if "runs" in arguments.only:
        rows += runs(arguments.quick)
    if "images" in arguments.only:
        rows += images([50, 200] if arguments.quick else arguments.images, arguments.wall)
    show(rows)
    out = arguments.out or (None if arguments.quick or len(arguments.only) < 3 else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "base": BASE, "rows": rows}
        (out / "growth.json").write_text(json.dumps(facts, indent=1) + "\n")
        draw(rows, out / "growth.png")
        print(f"-> {out / 'growth.json'}, growth.png")


if __name__ == "__main__":
    main()
