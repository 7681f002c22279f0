"""A comparison as figures: mIoU against steps, labels, lengths, training time, latency, where there is such a thing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from segdistill.comparison.labels import PLACES, named_places, place_name
from segdistill.comparison.notes import Comparison
from segdistill.comparison.statistics import mean_and_deviation
from segdistill.engine.run_folder import stored_json
from segdistill.measure.deployed import BENCHMARK, EAGER, KIND
from segdistill.report.curves import LINES
from segdistill.report.efficiency import CURVE
from segdistill.report.figures import DASHES, MUTED, Album, Drawing, brief, log_scale, note, percent_axis
from segdistill.report.study import BASELINE, COLOURS, TEACHER, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (4.2, 2.7)
PANELS = 6
"""Of one kind at most."""
FAR = 1.5
"""How far from the points, in their range, a teacher's line may be; one farther off would press them together."""
MARKERS = "os^Dv<>P"
"""Of students; the filled ones."""

Row = Mapping[str, Any]


@dataclass
class Compared:
    """What the page shows of one comparison."""

    result: Comparison
    drawings: list[Drawing] = field(default_factory=list)
    methods: list[Group] = field(default_factory=list)
    """Those that are drawn, each with its colour."""
    remarks: list[str] = field(default_factory=list)


def draw_comparison(album: Album, result: Comparison, folder: Path, prefix: str = "compare") -> Compared:
    """Draw what a comparison has: validations, shares of labels, lengths of the training, times, latencies.

    Args:
        album: draws it.
        result: what `gather` returned.
        folder: of the comparison, for latencies that were measured of its students.
        prefix: of the figures' files.
    """
    shown = Compared(result)
    rows = [row for row in result["rows"] if row["miou"] is not None]
    shown.methods = _methods(result, rows)
    told = {group.label: group for group in shown.methods}
    left = len({row["method"] for row in rows}) - len(told)
    if left:
        shown.remarks.append(f"Figures leave out the {left} methods that reach least.")
    rows = [row for row in rows if row["method"] in told]
    students = list(dict.fromkeys(row["student"] for row in rows))
    if len(students) > 1:
        named = zip("●■▲◆▼◀▶✚", students, strict=False)
        shown.remarks.append("Points: " + ", ".join(f"{mark} {student}" for mark, student in named) + ".")
    painter = _Painter(album, result, told, {student: MARKERS[n % 8] for n, student in enumerate(students)}, prefix)
    ways = {run["folder"]: run["validations"] for run in result["runs"] if run.get("validations")}
    painter.each(rows, (), lambda *place: painter.steps(ways, *place))
    painter.each(rows, ("labelled",), painter.labels)
    for split in dict.fromkeys((result["split"], "val")):
        painter.each(rows, ("length",), partial(painter.lengths, split))
    painter.each(rows, ("length", "student"), painter.seconds)
    latencies = stored_latencies(folder, result)
    painter.each(rows, ("length", "student"), lambda *place: painter.latency(latencies, *place))
    shown.drawings = painter.drawings
    shown.remarks += [f"Not drawn, for their number: {', '.join(painter.left)}."] if painter.left else []
    return shown


def stored_latencies(folder: Path, result: Comparison) -> dict[str, float]:
    """Milliseconds of one image by student, where all were measured alike; else none.

    Args:
        folder: of a comparison, with what `segdistill curve` or `benchmark --formats` have left.
        result: the comparison.
    """
    curve = stored_json(folder / CURVE)
    points = {point["student"]: point["ms"] for point in curve.get("points", ()) if point.get("ms")}
    if points:
        return points
    circumstances = set()
    for run in result["runs"]:
        found = stored_json(folder / run["folder"] / BENCHMARK)
        if found.get("kind") != KIND:
            continue
        row = next((row for row in found["rows"] if (row["role"], row["format"]) == ("student", EAGER)), None)
        if row is not None:
            points.setdefault(run["student"], row["ms"])
            circumstances.add((*found["size"], found["threads"]))
    return points if len(circumstances) == 1 else {}


def _methods(result: Comparison, rows: Iterable[Row]) -> list[Group]:
    """The methods with their colours, the baseline first; where they are many, those that reach most."""
    reached: dict[str, list[float]] = {}
    for row in rows:
        reached.setdefault(row["method"], []).append(row["miou"])
    named = (result["baseline"], result["against"])
    best = sorted(reached, key=lambda method: (method not in named, -fmean(reached[method])))[:LINES]
    others = [method for method in reached if method in best and method != result["baseline"]]
    groups = [Group(result["baseline"], [], "baseline", BASELINE)] if result["baseline"] in reached else []
    for number, method in enumerate(others):
        groups.append(Group(method, [], colour=COLOURS[number % len(COLOURS)], cycle=number // len(COLOURS)))
    return groups


@dataclass
class _Painter:
    album: Album
    result: Comparison
    methods: Mapping[str, Group]
    markers: Mapping[str, str]
    prefix: str
    drawings: list[Drawing] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def each(
        self, rows: Sequence[Row], joined: Sequence[str], draw: Callable[[list[Row], str, str], Drawing | None]
    ) -> None:
        """Draw a figure for the rows of each place, as many as fit on a page; what is joined is within one figure."""
        keys = [key for key in PLACES if key not in joined]
        several = named_places(rows, keys)
        parts: dict[str, list[Row]] = {}
        for row in rows:
            parts.setdefault(place_name(row, several), []).append(row)
        count = 0
        for number, (place, own) in enumerate(parts.items()):
            if count == PANELS:
                self.left.append(place)
                continue
            drawing = draw(own, f": {place}" if place else "", f"_{number}" if len(parts) > 1 else "")
            if drawing is not None:
                self.drawings.append(drawing)
                count += 1

    def steps(self, ways: Mapping[str, list[list[float]]], rows: list[Row], place: str, end: str) -> Drawing | None:
        """Validation mIoU over the steps, mean and deviation over seeds."""
        folders: dict[str, list[str]] = {row["method"]: [] for row in rows}
        for run in self.result["runs"]:
            same = all(run.get(key) == rows[0].get(key) for key in PLACES)
            if same and run["method"] in folders and run["folder"] in ways and run["status"] == "done":
                folders[run["method"]].append(run["folder"])
        bands = {method: mean_band([ways[name] for name in names]) for method, names in folders.items() if names}
        curves = {method: band for method, band in bands.items() if band}  # seeds may have no step in common
        if max(map(len, curves.values()), default=0) < 2:
            return None

        def paint(axes: "Axes") -> None:
            for method, band in curves.items():
                group = self.methods[method]
                xs, means, deviations = zip(*band, strict=True)
                axes.plot(xs, means, color=group.colour, ls=DASHES[group.cycle % len(DASHES)], marker="o", ms=2.5)
                low, high = ([m + side * d for m, d in zip(means, deviations, strict=True)] for side in (-1, 1))
                axes.fill_between(xs, low, high, color=group.colour, alpha=0.15, lw=0)
            axes.set_xlabel("step")

        ends = {method: (band[-1][0], band[-1][1]) for method, band in curves.items()}
        return self._draw("steps", end, f"val mIoU against steps, %{place}", ends, paint, teacher=False)

    def labels(self, rows: list[Row], place: str, end: str) -> Drawing | None:
        """MIoU over the number of images with labels."""
        counts = {row["labelled"]: row.get("labelled_images") for row in rows}
        if len(counts) < 2 or None in counts:
            return None
        known = {share: float(count) for share, count in counts.items() if count is not None}
        scaled = len(known) == len(counts)  # a table of an older version does not say how many they are
        at = known if scaled else {share: float(n) for n, share in enumerate(counts)}
        told = f"{self.result['split']} mIoU against labels, %{place}"
        return self._along("labels", end, told, rows, "labelled", at, "images with labels", scaled=scaled)

    def lengths(self, split: str, rows: list[Row], place: str, end: str) -> Drawing | None:
        """MIoU over the steps of whole trainings, on a split."""
        own = split == self.result["split"]  # the teacher's figures are of this one alone
        rows = [row for row in rows if row.get("length") and (own or row["val_miou"] is not None)]
        lengths = sorted({row["length"] for row in rows})
        if len(lengths) < 2:
            return None
        if not own:
            rows = [{**row, **self._on_val(row)} for row in rows]
        at = {length: float(length) for length in lengths}
        told = f"{split} mIoU against the length of the training, %{place}"
        name, unit = f"lengths_{split}", "steps of the training"
        return self._along(name, end, told, rows, "length", at, unit, scaled=True, teacher=own)

    def _on_val(self, row: Row) -> dict[str, Any]:
        """A row's figures on the validation split."""
        own = [run for run in self.result["runs"] if all(run.get(key) == row.get(key) for key in (*PLACES, "method"))]
        known = [run["val_miou"] for run in own if run["status"] == "done" and run["val_miou"] is not None]
        mean, deviation = mean_and_deviation(known)
        return {"miou": mean, "miou_deviation": deviation}

    def _along(
        self,
        name: str,
        end: str,
        title: str,
        rows: list[Row],
        key: str,
        at: Mapping[Any, float],
        unit: str,
        *,
        scaled: bool,
        teacher: bool = True,
    ) -> Drawing:
        """The rows of each method joined along an entry, whose values lie where `at` says."""

        def paint(axes: "Axes") -> None:
            for method, group in self.methods.items():
                own = sorted((row for row in rows if row["method"] == method), key=lambda row: at[row[key]])
                style = {"color": group.colour, "ls": DASHES[group.cycle % len(DASHES)]}
                self._bars(axes, [(at[row[key]], row) for row in own], **style)
            if scaled and max(at.values()) > 3 * min(at.values()) > 0:
                axes.set_xscale("log")
            axes.set_xticks(
                list(at.values()), [_tick(str(value), place if scaled else None) for value, place in at.items()]
            )
            axes.minorticks_off()
            axes.set_xlabel(unit)

        points = {f"{row['method']} at {row[key]}": (at[row[key]], row["miou"]) for row in rows}
        return self._draw(name, end, title, points, paint, teacher=teacher)

    def seconds(self, rows: list[Row], place: str, end: str) -> Drawing | None:
        """MIoU over the time that training took."""
        return self._scatter("seconds", rows, place, end, "training, s", [row["training_seconds"] for row in rows])

    def latency(self, latencies: Mapping[str, float], rows: list[Row], place: str, end: str) -> Drawing | None:
        """MIoU over what one image takes the student."""
        found = [latencies.get(row["student"]) for row in rows]
        if len({value for value in found if value is not None}) < 2:
            return None  # one network in several trainings takes one time
        return self._scatter("latency", rows, place, end, "latency, ms", found)

    def _scatter(
        self, name: str, rows: list[Row], place: str, end: str, unit: str, found: Sequence[float | None]
    ) -> Drawing | None:
        known = [(x, row) for x, row in zip(found, rows, strict=True) if x]
        if len(known) < 2:
            return None

        def paint(axes: "Axes") -> None:
            for x, row in known:
                self._bars(axes, [(x, row)], color=self.methods[row["method"]].colour, ls="none")
            xs = [x for x, _ in known]
            if max(xs) > 4 * min(xs):
                log_scale(axes.xaxis)
            axes.set_xlabel(unit)

        points = {f"{row['method']}, {row['student']}": (x, row["miou"]) for x, row in known}
        return self._draw(
            name, end, f"{self.result['split']} mIoU against {unit.replace(',', ' in')}, %{place}", points, paint
        )

    def _bars(self, axes: "Axes", points: Sequence[tuple[float, Row]], **style: Any) -> None:
        """Points of rows, joined or not, each with the deviation over seeds."""
        if not points:
            return
        xs, ys = [x for x, _ in points], [row["miou"] for _, row in points]
        bars = [row["miou_deviation"] or 0 for _, row in points]
        marker = self.markers[points[0][1]["student"]]
        axes.errorbar(xs, ys, bars, marker=marker, ms=4.5, elinewidth=0.8, capsize=2, **style)

    def _draw(
        self,
        name: str,
        end: str,
        title: str,
        points: Mapping[str, tuple[float, float]],
        paint: Callable[["Axes"], None],
        *,
        teacher: bool = True,
    ) -> Drawing:
        reached = {row["miou"] for row in self.result["teachers"].values()} if teacher else set()
        known = next(iter(reached)) if len(reached) == 1 else None

        def whole(figure: "Figure") -> None:
            axes = figure.subplots()
            paint(axes)
            low, high = axes.dataLim.intervaly
            if known is not None:
                note(axes, f"teacher {100 * known:.1f}")
                if low - FAR * (high - low) < known < high + FAR * (high - low):
                    axes.axhline(known, color=TEACHER, ls="--", lw=1)
            axes.margins(x=0.08, y=0.1)
            percent_axis(axes.yaxis)
            axes.xaxis.label.set_color(MUTED)

        told = ", ".join(f"{label} {100 * y:.1f} % at {x:.4g}" for label, (x, y) in points.items())
        legend = list(self.methods.values())
        return self.album.draw(f"{self.prefix}_{name}{end}", title, f"{title}; {told}", PANEL, whole, legend)


def mean_band(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float, float]]:
    """Mean and standard deviation of several curves, at the steps that all of them have.

    Args:
        curves: (step, value) pairs, one list per run.

    Returns:
        (step, mean, deviation); the deviation of a single curve is 0.

    >>> mean_band([[[1, 0.25], [2, 0.5]], [[2, 0.5]]])
    [(2, 0.5, 0.0)]
    """
    known = [{step: value for step, value in curve} for curve in curves]
    steps = sorted(set(known[0]).intersection(*known[1:]))
    return [(step, mean, sd or 0.0) for step in steps for mean, sd in [mean_and_deviation([c[step] for c in known])]]


def _tick(value: str, place: float | None) -> str:
    """What stands below a tick: the value, and the number at which it lies if that is another."""
    name = brief(value, 14)
    return name if place is None or value == f"{place:.0f}" else f"{name}\n{place:.0f}"
