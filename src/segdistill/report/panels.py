"""The figures of classes, prototypes, confusions and costs, one function each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdistill.report.classes import ClassRow, Matrix, rank_correlation
from segdistill.report.figures import (
    BAR,
    BETTER,
    INK,
    LINE,
    MARGINS,
    MUTED,
    WORSE,
    Album,
    Drawing,
    brief,
    log_scale,
    note,
    percent_axis,
    place_labels,
    signed,
)
from segdistill.report.prototypes import ClassDistances
from segdistill.report.study import Group, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


def class_bars(album: Album, study: Study, rows: Sequence[ClassRow], label: str) -> Drawing:
    """IoU of each class, hardest first: what the baseline reaches, what is gained or lost, where the teacher is."""
    gains = ", ".join(f"{r.name} {signed(r.gain)}" for r in rows if r.gain is not None)
    return album.draw(
        "classes",
        f"IoU by class, hardest first, %: {label}",
        f"Bars of IoU by class, hardest first. Gains over the baseline in points: {gains or 'no baseline'}",
        (4.4, max(4.4, 0.5 + 0.21 * len(rows))),
        lambda figure: _bars(figure, rows),
    )


def gains(album: Album, rows: Sequence[ClassRow]) -> list[Drawing]:
    """Gain of each class against its difficulty and against its share of the pixels (FAKD's Figures 2 and 4)."""
    drawings = []
    for key, name, title in (
        ("baseline", "difficulty", "the baseline's IoU, %"),
        ("share", "pixels", "pixel share, %"),
    ):
        points = [(x, r.gain, brief(r.name)) for r in rows if (x := getattr(r, key)) is not None and r.gain is not None]
        points = [point for point in points if key != "share" or point[0] > 0]
        if len(points) < 2:
            continue
        rank = rank_correlation([p[0] for p in points], [p[1] for p in points])
        told = "" if rank is None else f"rank correlation {rank:+.2f}".replace("-", "−")
        drawings.append(
            album.draw(
                f"gain_{name}",
                f"Gain against {title}",
                f"Scatter of the gain in IoU of each class against {title}; {told}",
                (3.9, 2.5),
                lambda figure, points=points, told=told, log=key == "share": _scatter(  # type: ignore[misc]
                    figure, points, told, log
                ),
                margins=MARGINS,
            )
        )
    return drawings


def image_gains(album: Album, baseline: Values, student: Values) -> list[Drawing]:
    """Gain of each image against its difficulty, both in mean IoU over the classes in its truth (FAKD's Figure 2).

    Args:
        album: draws it.
        baseline: mean IoU of each image (images,), NaN where it has no labels.
        student: likewise.
    """
    pairs = [(float(x), float(y - x), "") for x, y in zip(baseline, student, strict=True) if np.isfinite(x + y)]
    if len(pairs) < 2:
        return []
    rank = rank_correlation([x for x, _, _ in pairs], [gain for _, gain, _ in pairs])
    won = sum(gain > 0 for _, gain, _ in pairs)
    told = f"{won} of {len(pairs)} images gain"
    told += "" if rank is None else f", rank correlation {rank:+.2f}".replace("-", "−")
    title = "Gain by image against the baseline's mIoU, %"
    return [
        album.draw(
            "gain_images",
            title,
            f"Scatter of the gain in mean IoU of each image against the baseline's; {told}",
            (3.9, 2.5),
            lambda figure: _scatter(figure, pairs, told, log=False),
            margins=MARGINS,
        )
    ]


def distances(album: Album, found: Mapping[str, ClassDistances], study: Study, space: str) -> list[Drawing]:
    """Mean distance within and between classes of every student at the end of its training."""
    groups = [group for group in study.groups if group.label in found]
    if not groups:
        return []
    told = "; ".join("{} within {:.2f}, between {:.2f}".format(g.label, *found[g.label].means) for g in groups)
    return [
        album.draw(
            f"prototypes_{space}",
            f"Prototypes of {space}, at the end",
            f"Distances of class prototypes of {space} to the teacher's, within and between classes: {told}",
            (3.9, 0.7 + 0.36 * len(groups)),
            lambda figure: _distances(figure, groups, found),
        )
    ]


def confusion(album: Album, change: Matrix, classes: Sequence[str], label: str, other: str, name: str) -> Drawing:
    """Where the student's confusions differ from another network's."""
    longest = max(map(len, map(brief, classes)))
    size = min(5.6, max(1.5, 0.6 + 0.075 * longest) + 0.27 * len(classes))
    return album.draw(
        f"confusion_{name}",
        f"{label} against {other}",
        f"Matrix of changes in the share of each true class's pixels: blue where {label} is better than {other}",
        (size, size - 0.1),
        lambda figure: _matrix(figure, change, classes),
    )


def cost(album: Album, study: Study) -> Drawing | None:
    """MIoU against the operations of one forward pass."""
    points = []
    for group in study.everyone:
        flops, miou = group.result("flops"), group.result("miou")
        if flops is not None and miou is not None and flops.mean > 0:
            points.append((group, flops.mean / 1e9, miou))
    if len({round(x, 3) for _, x, _ in points}) < 2:
        return None

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for group, x, y in points:
            series = f"series-{group.slot}"
            axes.errorbar(x, y.mean, y.sd, fmt="o", ms=5, elinewidth=0.8, color=group.colour, gid=series)
        xs = [x for _, x, _ in points]
        if max(xs) > 8 * min(xs):
            log_scale(axes.xaxis)
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel("GFLOPs")
        percent_axis(axes.yaxis)
        place_labels(axes, sorted(((x, y.mean, group.label) for group, x, y in points), key=lambda point: -point[1]))

    told = ", ".join(f"{g.label} {100 * y.mean:.1f} % at {x:.3g} GFLOPs" for g, x, y in points)
    return album.draw(
        "cost",
        "mIoU against cost, %",
        f"Scatter of mIoU against operations: {told}",
        (3.9, 2.7),
        paint,
        margins=MARGINS,
    )


def _bars(figure: "Figure", rows: Sequence[ClassRow]) -> None:
    axes = figure.subplots()
    top = max((v for r in rows for v in (r.student, r.baseline, r.teacher) if v is not None), default=1.0)
    for y, row in enumerate(rows):
        before, after = row.baseline, row.student
        base = min(v for v in (before, after) if v is not None)
        axes.barh(y, base, 0.62, color=BAR)
        if row.gain is not None:
            worse, same = row.gain < 0, abs(row.gain) < 0.0005
            colour = MUTED if same else WORSE if worse else BETTER
            fill: Any = {"color": "none", "edgecolor": colour, "hatch": "////"} if worse else {"color": colour}
            if not same:
                axes.barh(y, abs(row.gain), 0.62, left=base, lw=0.6, **fill)
            axes.text(1.16 * top, y, signed(row.gain), ha="right", va="center", color=colour, fontsize=7.5)
        if row.teacher is not None:
            axes.plot([row.teacher] * 2, [y - 0.38, y + 0.38], color=INK, lw=1.6)
    axes.set_yticks(range(len(rows)), [brief(row.name) for row in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.17 * top)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1.001])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    percent_axis(axes.xaxis)


def _scatter(figure: "Figure", points: Sequence[tuple[float, float, str]], told: str, log: bool) -> None:
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.scatter(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        s=26,
        c=[BETTER if y >= 0 else WORSE for _, y, _ in points],
        alpha=0.9,
        linewidths=0,
    )
    if log:
        log_scale(axes.xaxis)
    axes.margins(x=0.12, y=0.15)
    axes.set_ylabel("gain, points")
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    note(axes, told)
    place_labels(axes, sorted((point for point in points if point[2]), key=lambda point: -abs(point[1])))


def _distances(figure: "Figure", groups: Sequence[Group], found: Mapping[str, ClassDistances]) -> None:
    axes = figure.subplots()
    for y, group in enumerate(groups):
        within, between = found[group.label].means
        axes.plot([within, between], [y, y], color=LINE, lw=2.5, zorder=1)
        axes.plot(within, y, "o", ms=6.5, color=group.colour)
        axes.plot(between, y, "D", ms=5.5, mfc="none", color=group.colour)
        for x in (within, between):
            axes.annotate(
                f"{x:.2f}", (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=6.5, color=MUTED
            )
        axes.annotate(group.label, (0, y), (0, 5), textcoords="offset points", fontsize=7)
    axes.set_yticks([])
    axes.set_ylim(len(groups) - 0.5, -0.7)
    axes.set_xlim(0, 1.12 * max(max(found[group.label].means) for group in groups))
    axes.set_xlabel("● within a class   ◇ between classes")
    axes.grid(visible=False, axis="y")


def _matrix(figure: "Figure", change: Matrix, classes: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    axes = figure.subplots()
    shades = [(*to_rgb(WORSE), 1.0), (*to_rgb(WORSE), 0.0), (*to_rgb(BETTER), 0.0), (*to_rgb(BETTER), 1.0)]
    colours = LinearSegmentedColormap.from_list("change", list(zip((0, 0.5, 0.5, 1), shades, strict=True)))
    known = np.nan_to_num(change)
    limit = max(float(np.abs(known).max()), 0.01)
    axes.imshow(known, cmap=colours, vmin=-limit, vmax=limit, interpolation="none")
    if len(classes) <= 24:
        names = list(map(brief, classes))
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= 12:
        for i, j in np.argwhere(np.abs(known) >= 0.005):
            sign = 1 if i == j else -1  # more or fewer pixels, as in the page's list; the colour says better or worse
            axes.text(j, i, f"{100 * sign * known[i, j]:+.0f}".replace("-", "−"), ha="center", va="center", fontsize=6)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
