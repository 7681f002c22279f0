"""Teacher, baseline and student in each format: mIoU against latency and against size, from `benchmark --formats`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill._printing import number_of
from segdistill.engine.run_folder import stored_json
from segdistill.measure.deployed import BENCHMARK, KIND
from segdistill.report.figures import MUTED, Album, Drawing, brief, log_scale, percent_axis, place_labels
from segdistill.report.study import BASELINE, COLOURS, TEACHER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = {"teacher": TEACHER, "baseline": BASELINE, "student": COLOURS[0]}
AXES = {"ms": ("latency, ms", 1.0), "bytes": ("file, MB", 1e6)}


def stored_formats(folder: Path) -> dict[str, Any] | None:
    """What `benchmark --formats` left in a run's folder, if it scored anything.

    Args:
        folder: of the run.
    """
    found = stored_json(folder / BENCHMARK)
    return found if found.get("kind") == KIND and any(row["miou"] is not None for row in found["rows"]) else None


def draw_formats(album: Album, result: Mapping[str, Any], name: str = "formats") -> Drawing:
    """MIoU against latency and against the file's size, a point per format.

    Args:
        album: draws it.
        result: what `benchmark_formats` returned.
        name: of the file.
    """
    rows = [row for row in result["rows"] if row["miou"] is not None]
    names = [row["role"] + ", " + row["format"] for row in rows]
    size = "×".join(map(str, result["size"]))
    threads = number_of(result["threads"], "thread")

    def paint(figure: "Figure") -> None:
        for axes, (key, (label, unit)) in zip(figure.subplots(1, 2, sharey=True), AXES.items(), strict=True):
            points = [(row[key] / unit, row["miou"]) for row in rows]
            for row, point in zip(rows, points, strict=True):
                axes.plot(*point, "o" if row["format"].startswith("PyTorch") else "s", ms=5, color=COLOUR[row["role"]])
            xs = [x for x, _ in points]
            if min(xs) > 0 and max(xs) > 4 * min(xs):
                log_scale(axes.xaxis)
            axes.margins(x=0.2, y=0.18)
            axes.set_xlabel(f"{label} ({size}, {threads})" if key == "ms" else label, color=MUTED)
            percent_axis(axes.yaxis)
            shown = zip(points, rows, strict=True)
            labels = [(x, y, row["role"] + ", " + brief(row["format"], 20)) for (x, y), row in shown]
            place_labels(axes, sorted(labels, key=lambda point: -point[1]), size=6.5)

    told = ", ".join(
        f"{name} {100 * row['miou']:.1f} % in {row['ms']:.3g} ms" for name, row in zip(names, rows, strict=True)
    )
    title = f"{result['split']} mIoU by format, % (● PyTorch, ■ ONNX)"
    return album.draw(name, title, f"Scatter of mIoU against latency and size: {told}", (7.4, 2.9), paint)
