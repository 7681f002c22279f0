"""What `segdistill eval --metric` found beside the mean IoU: a table, and a figure for each metric that has a shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segdistill.metrics import Headline, list_metrics, metric_class
from segdistill.report.collect import Run, Spread, number
from segdistill.report.figures import BAR, BETTER, DASHES, INK, MARGINS, MUTED, WORSE, Album, Drawing, percent_axis
from segdistill.report.study import Group, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.5, 2.6)
FEW = 1e-3
"""Share of the pixels below which a bin of the reliability diagram is not drawn."""
SPLITS = ("val", "test", "train")

Values = list[float | None]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        headline: what its figures are.
        cells: of the groups, in order.
    """

    headline: Headline
    cells: list[Spread | None]


@dataclass(frozen=True)
class Found:
    """What metrics found on one split.

    Args:
        split: such as `val`.
        groups: those that have some.
    """

    split: str
    groups: list[Group]

    def lists(self, group: Group, metric: str, *keys: str) -> list[Values]:
        """Lists of numbers of a group's runs, all of one length; no list of a run that lacks it.

        Args:
            group: one of `groups`.
            metric: its name.
            *keys: where the list stands in what the metric found.
        """
        found = []
        for run in group.runs:
            values: Any = stored(run, self.split).get(metric)
            for key in keys:
                values = values.get(key) if isinstance(values, Mapping) else None
            if isinstance(values, list) and values:
                found.append([number(value) for value in values])
        return found if len({len(values) for values in found}) == 1 else []

    def means(self, group: Group, metric: str, *keys: str) -> Values:
        """Such a list, each entry its mean over the runs that know it; empty if there is none."""
        spreads = [Spread.of(entries) for entries in zip(*self.lists(group, metric, *keys), strict=True)]
        return [None if spread is None else spread.mean for spread in spreads]

    def figure(self, group: Group, metric: str, key: str) -> Spread | None:
        """A number that a metric found, over the runs of a group."""
        found = (stored(run, self.split).get(metric) for run in group.runs)
        return Spread.of(values.get(key) for values in found if isinstance(values, Mapping))


def stored(run: Run, split: str) -> Mapping[str, Any]:
    """What `eval --metric` left of a run: name of a metric → what it found.

    Args:
        run: any.
        split: such as `val`.
    """
    return run.evaluations.get(split, {}).get("metrics") or {}


def find_metrics(study: Study) -> Found | None:
    """The split of which most groups have further metrics (of equals: val, then test); None if no group has any.

    Args:
        study: the runs.
    """
    best: Found | None = None
    for split in SPLITS:
        having = [g for g in study.everyone if any(stored(run, split) for run in g.runs)]
        if having and (best is None or len(having) > len(best.groups)):
            best = Found(split, having)
    return best


def lines(found: Found) -> list[Line]:
    """The table of the metrics' figures, those that no group has left out.

    Args:
        found: by `find_metrics`.
    """
    listed = []
    for name in list_metrics():
        for key, headline in metric_class(name).headlines.items():
            cells = [found.figure(group, name, key) for group in found.groups]
            listed += [Line(headline, cells)] if any(cells) else []
    return listed


def metric_figures(album: Album, found: Found) -> list[Drawing]:
    """The figures: reliability, trimap curve, images by their mean IoU, sizes of objects, the teacher's errors.

    Args:
        album: draws them.
        found: by `find_metrics`.
    """
    return [drawing for draw in (_reliability, _trimap, _images, _sizes, _errors) for drawing in draw(album, found)]


def _line(axes: "Axes", group: Group, xs: Sequence[float], ys: Sequence[float], **options: Any) -> None:
    dash = "--" if group.role == "teacher" else DASHES[group.cycle % len(DASHES)]
    axes.plot(xs, ys, color=group.colour, ls=dash, gid=f"series-{group.slot}", **options)


def _told(found: Found, metric: str, key: str, factor: float = 100, unit: str = " %") -> str:
    """The figures of all groups in words."""
    spreads = ((group.label, found.figure(group, metric, key)) for group in found.groups)
    return ", ".join(f"{label} {factor * spread.mean:.1f}{unit}" for label, spread in spreads if spread is not None)


def _bins(found: Found, group: Group) -> tuple[list[float], list[float], list[float]] | None:
    """Confidence and accuracy of the bins that have pixels enough, and the share of the pixels in each bin."""
    pixels, confidence, accuracy = (
        found.lists(group, "calibration", "bins", key) for key in ("pixels", "confidence", "accuracy")
    )
    if not pixels or not len(pixels) == len(confidence) == len(accuracy):
        return None
    count, sure, right = (np.array(values, dtype=float) for values in (pixels, confidence, accuracy))
    if not count.shape == sure.shape == right.shape or not np.nansum(count):
        return None
    whole = np.nansum(count, 0)
    shares = whole / whole.sum()
    with np.errstate(invalid="ignore"):
        x, y = (np.nansum(values * count, 0) / whole for values in (sure, right))
    keep = shares >= FEW
    return x[keep].tolist(), y[keep].tolist(), shares.tolist()


def _reliability(album: Album, found: Found) -> Iterator[Drawing]:
    bins = [(group, values) for group in found.groups if (values := _bins(found, group)) is not None]
    if not bins:
        return

    def paint(figure: "Figure") -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=BAR, lw=1)
        for group, (sure, right, shares) in bins:
            _line(above, group, sure, right, marker="o", ms=2.5)
            edges = [step / len(shares) for step in range(len(shares) + 1)]
            below.stairs(shares, edges, color=group.colour, lw=1)
        above.set(xlim=(0, 1), ylim=(0, 1))
        above.set_ylabel("accuracy, %")
        below.set_ylabel("pixels, %")
        below.set_xlabel("confidence, %")
        for axis in (above.yaxis, below.yaxis, below.xaxis):
            percent_axis(axis)

    told = f"Reliability diagram; expected calibration error: {_told(found, 'calibration', 'ece')}"
    yield album.draw("reliability", "Reliability", told, (3.5, 3.4), paint, [g for g, _ in bins], MARGINS)


def _curves(
    album: Album,
    found: Found,
    name: str,
    title: str,
    alt: str,
    series: Callable[[Group], tuple[Values, Values]],
    label: str,
    *,
    log: bool = False,
) -> Iterator[Drawing]:
    """A line for each group; shares in percent upwards."""
    curves: list[tuple[Group, list[float], list[float]]] = []
    for group in found.groups:
        xs, ys = series(group)
        pairs = [(x, y) for x, y in zip(xs, ys, strict=False) if x is not None and y is not None]
        curves += [(group, [x for x, _ in pairs], [y for _, y in pairs])] if pairs else []
    if not curves:
        return

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for group, xs, ys in curves:
            _line(axes, group, xs, ys, marker="o", ms=2.5)
        if log:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for _, xs, _ in curves for x in xs})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(label)
        percent_axis(axes.yaxis)

    yield album.draw(name, title, alt, PANEL, paint, [group for group, _, _ in curves], MARGINS)


def _trimap(album: Album, found: Found) -> Iterator[Drawing]:
    def series(group: Group) -> tuple[Values, Values]:
        return found.means(group, "trimap", "widths"), found.means(group, "trimap", "miou")

    told = f"Curves of mIoU near boundaries by width of the band; at 4 pixels: {_told(found, 'trimap', 'miou_4')}"
    title, label = "mIoU near boundaries, %", "pixels on each side of a boundary"
    yield from _curves(album, found, "trimap", title, told, series, label, log=True)


def _images(album: Album, found: Found) -> Iterator[Drawing]:
    def series(group: Group) -> tuple[Values, Values]:
        values = found.means(group, "images", "deciles")
        return [100 * step / (len(values) - 1) for step in range(len(values))] if len(values) > 1 else [], values

    told = f"Images in the order of their mean IoU; mean: {_told(found, 'images', 'miou_i')}"
    yield from _curves(album, found, "images", "mIoU of an image, %", told, series, "images, worst first, %")


def _sizes(album: Album, found: Found) -> Iterator[Drawing]:
    sizes = ("small", "medium", "large")
    bars = [(g, [found.figure(g, "sizes", f"miou_{size}") for size in sizes]) for g in found.groups]
    bars = [(group, values) for group, values in bars if any(values)]
    if not bars:
        return

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        width = 0.8 / len(bars)
        for place, (group, values) in enumerate(bars):
            at = [(x - 0.4 + (place + 0.5) * width, value) for x, value in enumerate(values) if value is not None]
            heights = [value.mean for _, value in at]
            spreads = [value.sd or 0.0 for _, value in at]
            look: dict[str, Any] = {"color": "none", "edgecolor": INK} if group.role == "teacher" else {}
            look = look or {"color": group.colour}
            axes.bar([x for x, _ in at], heights, 0.9 * width, lw=0.8, gid=f"series-{group.slot}", **look)
            if any(spreads):
                axes.errorbar([x for x, _ in at], heights, spreads, fmt="none", ecolor=MUTED, elinewidth=0.8)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("objects, by their share of the image")
        percent_axis(axes.yaxis)

    told = "; ".join(f"{size}: {_told(found, 'sizes', f'miou_{size}')}" for size in sizes)
    alt = f"Bars of mIoU by size of objects. {told}"
    yield album.draw("sizes", "mIoU by size of objects, %", alt, PANEL, paint, [group for group, _ in bars], MARGINS)


def _errors(album: Album, found: Found) -> Iterator[Drawing]:
    kinds = (("corrected", "corrected", BETTER), ("other", "another error", BAR), ("repeated", "repeated", WORSE))
    rows = []
    for group in found.groups:
        shares = [found.figure(group, "agreement", key) for key, _, _ in kinds]
        known = [share.mean for share in shares if share is not None]
        rows += [(group, known)] if group.role != "teacher" and len(known) == len(kinds) else []
    if not rows:
        return

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for y, (group, shares) in enumerate(rows):
            left = 0.0
            for share, (_, _, colour) in zip(shares, kinds, strict=True):
                axes.barh(y, share, 0.5, left=left, color=colour)
                if share >= 0.08:
                    ink = INK if colour == BAR else "white"
                    text = f"{100 * share:.0f}"
                    axes.text(left + share / 2, y, text, ha="center", va="center", fontsize=7, color=ink)
                left += share
            axes.annotate(group.label, (0, y), (0, 10), textcoords="offset points", fontsize=7)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.75)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("corrected  ·  another error  ·  repeated")
        percent_axis(axes.xaxis)

    told = f"corrected {_told(found, 'agreement', 'corrected')}; repeated {_told(found, 'agreement', 'repeated')}"
    alt = f"Bars of what students make of their teacher's errors: {told}"
    size = (3.5, 0.75 + 0.42 * len(rows))
    yield album.draw("errors", "The teacher's errors, %", alt, size, paint, margins=(0.1, 0.42, 0.1, 0.1))


__all__ = ["Found", "Line", "find_metrics", "lines", "metric_figures"]
