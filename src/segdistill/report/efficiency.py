"""What to deploy: one network at several widths, trained alone and distilled, as mIoU against what each costs."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from segdistill._printing import number_of, untold
from segdistill._types import Size, Stages, Told
from segdistill._version import __version__
from segdistill.comparison.executors.task import Executor
from segdistill.comparison.grid import compare
from segdistill.comparison.plan import Plan
from segdistill.comparison.watch import Watch
from segdistill.comparison.widths import load_curve
from segdistill.data import SegmentationDataset
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.run_folder import make_folder, write_json, write_text
from segdistill.engine.student import load_student
from segdistill.engine.teacher import Mapped, build_teacher
from segdistill.measure.benchmark import benchmark
from segdistill.report.collect import has_student
from segdistill.report.figures import INK, MUTED, Album, Format, log_scale, percent_axis, style
from segdistill.report.study import BASELINE, COLOURS, TEACHER, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE = "curve.json"
FORMAT = 1
COSTS = {"ms": ("latency, ms", 1.0), "bytes": ("size, MB", 1e6), "flops": ("GFLOPs", 1e9)}
"""What mIoU is drawn against: an axis's name, and its unit."""
COLUMNS = ("width", "method", "miou", "miou_deviation", "seeds", "ms", "ms_p95", "bytes", "params", "flops", "peak_mib")
TEACHERS = "teacher"


def draw_curve(
    source: str | Path | Mapping[str, Any] | Plan,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    size: Size | None = None,
    threads: int | None = None,
    repeats: int = 30,
    device: str = "cpu",
    figures: Format | None = None,
    say: Callable[[str], Any] = print,
    executor: Executor | None = None,
    watch: Callable[[Watch], Any] | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Train one network at several widths with each method, measure what each costs, and draw mIoU against it.

    The training is `compare`'s, and goes on where it was stopped. Costs are those of the deployed student, measured
    afterwards, all of them in turns.

    Args:
        source: as for `load_curve`, or a plan that is ready.
        overrides: `key.sub=value`.
        out: folder.
        jobs: runs at a time.
        size: (H,W) of the image that is timed (default: what the evaluation sees).
        threads: of the CPU while timing; None: torch's own choice.
        repeats: passes that are timed.
        device: on which is timed.
        figures: a further format of the picture, besides PNG.
        say: prints a line.
        executor: as for `compare`.
        watch: likewise.
        progress: called with what is measured; a context that gives a function of (passes done, in all).

    Returns:
        What is written to `curve.json`: `points` of `student`, `width`, `method`, `miou`, `miou_deviation`, `seeds`,
        `ms`, `ms_p95`, `bytes`, `params`, `flops`, `peak_mib`; `teacher`, likewise, or None; `errors`, a line per run
        that failed; `size`, `threads`, `repeats`, `device`, `environment`, `split`.

    Raises:
        ValueError: as `compare` does, or if nothing can be measured or drawn.
    """
    plan = source if isinstance(source, Plan) else load_curve(source, overrides, out)
    with style():  # what is missing is said before hours of training
        pass
    compared = compare(plan, jobs=jobs, executor=executor, say=say, watch=watch)
    how: dict[str, Any] = {"size": size, "threads": threads, "repeats": repeats, "device": device}
    with (progress or untold)("passes") as told:
        result = measure_curve(plan, compared, **how, progress=told)
    write_json(plan.out / CURVE, result)
    write_text(plan.out / "curve.csv", table(result))
    for kind in {"png", figures or "png"}:
        paint_curve(result, plan.out, kind)
    return result


def measure_curve(
    plan: Plan,
    compared: Mapping[str, Any],
    *,
    size: Size | None,
    threads: int | None,
    repeats: int,
    device: str,
    progress: Told | None = None,
) -> dict[str, Any]:
    """What the students of a comparison, and its teacher, cost beside what they reach.

    Args:
        plan: of the comparison.
        compared: what `compare` returned.
        size: as for `draw_curve`; so are the others.
        threads: of the CPU.
        repeats: passes.
        device: on which is timed.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: if no run has a student.
    """
    config = plan.runs[0].config
    dataset = build_split(config.data, plan.options.split)
    size = size or _seen(dataset, config.data.resize)
    networks: dict[str, nn.Module] = {}
    widths: dict[str, float] = {}
    for run in plan.runs:
        widths[run.student] = float(run.config.student.options["width"])
        if run.student not in networks and has_student(run.folder):
            networks[run.student] = load_student(run.folder)
    if not networks:
        raise ValueError(f"no run in {plan.out} has a student; {_first_error(compared)}")
    taught = next((run.config for run in plan.runs if run.config.distils), None)
    teacher = None if taught is None else build_teacher(taught, dataset.classes)
    if teacher is not None:
        networks[TEACHERS] = Mapped(teacher)
    measured = benchmark(networks, sizes=[size], repeats=repeats, threads=threads, device=device, progress=progress)
    keys = ("params", "flops", "ms", "ms_p95", "peak_mib")
    costs = {
        row["network"]: {key: row.get(key) for key in keys} | {"bytes": _bytes(networks[row["network"]])}
        for row in measured["rows"]
    }
    points = [
        {key: row[key] for key in ("student", "method", "miou", "miou_deviation", "seeds")}
        | {"width": widths[row["student"]], **costs[row["student"]]}
        for row in compared["rows"]
        if row["miou"] is not None and row["student"] in costs
    ]
    known = next(iter(compared["teachers"].values()), None)
    return {
        "format": FORMAT,
        "segdistill": __version__,
        "network": config.student.name,
        "data": plan.runs[0].data,
        "split": plan.options.split,
        "baseline": plan.baseline,
        "points": sorted(points, key=lambda point: (point["method"] != plan.baseline, point["method"], point["width"])),
        "teacher": None if known is None or teacher is None else {**_reached(known), **costs[TEACHERS]},
        "errors": [error for row in compared["rows"] for error in row["errors"]],
        "size": list(size),
        "threads": measured["environment"]["threads"],
        "repeats": repeats,
        "device": measured["device"],
        "environment": measured["environment"],
    }


def _seen(dataset: SegmentationDataset, resize: Size | None) -> Size:
    """(H,W) of the first image as the evaluation sees it."""
    image, _ = EvalTransform(size=resize)(*dataset[0])
    return image.shape[-2], image.shape[-1]


def _reached(teacher: Mapping[str, Any]) -> dict[str, Any]:
    return {key: teacher[key] for key in ("network", "miou")}


def _bytes(network: nn.Module) -> int:
    """Of the tensors that a student's file holds."""
    tensors = network.state_dict().items()
    return sum(t.numel() * t.element_size() for name, t in tensors if "aux" not in name.split("."))


def _first_error(compared: Mapping[str, Any]) -> str:
    return next((error for row in compared["rows"] for error in row["errors"]), "train first")


def table(result: Mapping[str, Any]) -> str:
    """The points as CSV, the teacher last, its width empty.

    Args:
        result: what `draw_curve` returned.
    """
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    teacher = [{**result["teacher"], "method": "teacher", "width": None}] if result["teacher"] else []
    for point in [*result["points"], *teacher]:
        cells = {**point, "seeds": " ".join(map(str, point.get("seeds", [])))}
        writer.writerow([cells.get(column, "") for column in COLUMNS])
    return lines.getvalue()


def paint_curve(result: Mapping[str, Any], folder: Path, kind: Format) -> None:
    """Draw mIoU against latency, size and operations into `curve.<kind>`.

    Args:
        result: what `draw_curve` returned.
        folder: of the file.
        kind: of the file.
    """
    make_folder(folder)
    methods = list(dict.fromkeys(point["method"] for point in result["points"]))
    others = [method for method in methods if method != result["baseline"]]
    colours = {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(others)}
    colours[result["baseline"]] = BASELINE
    legend = [Group(method, [], colour=colours[method]) for method in methods]
    if result["teacher"]:
        legend.append(Group(f"teacher, {result['teacher']['network']}", [], "teacher", TEACHER))
    shown = [cost for cost in COSTS if all(point[cost] is not None for point in result["points"])]
    told = ", ".join(f"{p['method']} at width {p['width']:g} {100 * p['miou']:.1f} %" for p in result["points"])

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, shown, strict=True):
            _panel(axes, result, cost, colours)
        panels[0].set_ylabel(f"{result['split']} mIoU, %")

    Album(folder, kind).draw(
        "curve",
        f"{result['network']} at several widths on {result['data']}",
        f"mIoU against {', '.join(COSTS[cost][0] for cost in shown)}: {told}",
        (2.9 * len(shown) + 0.3, 3.0),
        paint,
        legend=legend,
    )


def _panel(axes: "Axes", result: Mapping[str, Any], cost: str, colours: Mapping[str, str]) -> None:
    name, unit = COSTS[cost]
    teacher = result["teacher"]
    for method, colour in colours.items():
        points = [point for point in result["points"] if point["method"] == method]
        xs, ys = ([point[key] / scale for point in points] for key, scale in ((cost, unit), ("miou", 1)))
        bars = [point["miou_deviation"] or 0 for point in points]
        axes.errorbar(xs, ys, bars, fmt="o-", ms=4.5, elinewidth=0.8, capsize=2, color=colour)
    if teacher and teacher["miou"] is not None:
        axes.axhline(teacher["miou"], color=TEACHER, lw=1, ls="--")
        axes.plot(teacher[cost] / unit, teacher["miou"], "D", ms=5, color=TEACHER)
    low, high = axes.dataLim.intervalx
    if low > 0 and high > 4 * low:
        log_scale(axes.xaxis)
    axes.margins(x=0.12, y=0.14)
    axes.set_xlabel(_axis(name, cost, result), color=MUTED)
    percent_axis(axes.yaxis)
    best = {point["width"]: point for point in sorted(result["points"], key=lambda point: point["miou"])}
    for width, point in best.items():
        place: Any = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 7, "color": INK}
        axes.annotate(f"×{width:g}", (point[cost] / unit, point["miou"]), **place)


def _axis(name: str, cost: str, result: Mapping[str, Any]) -> str:
    """An axis's name with what its figures depend on."""
    size = "×".join(map(str, result["size"]))
    if cost == "ms":
        place = result["device"] if result["device"] != "cpu" else number_of(result["threads"], "thread")
        return f"{name} ({size}, {place})"
    return f"{name} (float32)" if cost == "bytes" else f"{name} ({size})"
