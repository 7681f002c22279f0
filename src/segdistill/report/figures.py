"""How a figure is drawn: as an SVG that follows the page's colours and, where wanted, as a file of its own."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segdistill.engine.run_folder import make_folder, write_atomically
from segdistill.report.study import TEACHER, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, BAR = TEACHER, "#68727e", "#dde1e6", "#c3c9d0"
"""Text, lesser text, grid, neutral bars. The page replaces them by its own, which change in dark mode."""
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1.2)))
"""Of lines, where there are more groups than colours."""
BETTER, WORSE = "#1f77c9", "#e66101"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", BAR: "var(--bar)"}
NEAR = [(5, -3, "left"), (-5, -3, "right"), (0, 6, "center"), (0, -12, "center")]
FAR = [
    (16 * side, 9 * sign * row - 3, "left" if side > 0 else "right")
    for row in range(1, 12)
    for sign in (1, -1)
    for side in (1, -1)
]
PLACES = NEAR + FAR
"""Of a name beside its point: right, up (in points), and which end of it is meant."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segdistill",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
Format = Literal["png", "pdf", "svg"]
Paint = Callable[["Figure"], None]
Margins = tuple[float, float, float, float]
"""Left, bottom, right and top of the axes, in inches."""
MARGINS: Margins = (0.55, 0.42, 0.1, 0.22)
"""Of a small figure with numbers on both axes, names of the axes and a note."""


@dataclass(frozen=True)
class Drawing:
    """A figure on the page."""

    name: str
    title: str
    svg: str


class Album:
    """Draws figures.

    Args:
        folder: of their files; made if it is missing.
        kind: of the files; None: there are none, which takes less than two thirds of the time.
    """

    def __init__(self, folder: Path, kind: Format | None = None):
        self.folder = folder
        self.kind = kind
        self.drawings: list[Drawing] = []
        if kind is not None:
            make_folder(folder)

    def draw(
        self,
        name: str,
        title: str,
        alt: str,
        size: tuple[float, float],
        paint: Paint,
        legend: Sequence[Group] = (),
        margins: Margins | None = None,
    ) -> Drawing:
        """Draw a figure.

        Args:
            name: of the file.
            title: over the figure.
            alt: what it shows, in words.
            size: (width, height) in inches.
            paint: draws into a matplotlib figure.
            legend: groups that are named under the figure in the file; the page has one legend for all.
            margins: around the axes; fitted to their texts if left out, which doubles the time.
        """
        from matplotlib.figure import Figure

        with style():
            figure = Figure(figsize=size, layout=None if margins else "tight")
            if margins:
                (left, bottom, right, top), (width, height) = margins, size
                figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.12)
            paint(figure)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
            drawing = Drawing(name, title, page_svg(buffer.getvalue(), f"f{len(self.drawings)}", alt))
            if self.kind is not None:
                frame(figure, title, legend)
                save_figure(figure, self.folder / f"{name}.{self.kind}", dpi=144, facecolor="white")
        self.drawings.append(drawing)
        return drawing


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a figure whole or not at all, in the format that the file's suffix names.

    Args:
        figure: matplotlib's.
        path: of the file.
        **options: of `savefig`.
    """
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=kind, **options))


def style() -> AbstractContextManager[None]:
    """The look of all figures, as a context.

    Raises:
        ValueError: if matplotlib or jinja2 is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl
    except ImportError as error:
        raise ValueError(f"a report needs {error.name}; pip install 'segdistill[report]'") from None
    context: AbstractContextManager[None] = mpl.rc_context(STYLE)
    return context


def frame(figure: "Figure", title: str, legend: Sequence[Group]) -> None:
    """Enlarge a figure by a title over it and the groups' colours under it; the axes keep their size."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    longest = max((len(group.label) for group in legend), default=0)
    columns = max(1, int(width // (0.5 + 0.066 * longest)))
    below = 0.05 + 0.18 * -(-len(legend) // columns)
    whole = 0.3 + height + below
    figure.set_layout_engine("none")
    figure.set_size_inches(width, whole)
    for axes in figure.axes:
        left, bottom, wide, high = axes.get_position(original=True).bounds
        axes.set_position((left, (bottom * height + below) / whole, wide, high * height / whole))
    figure.text(0.08 / width, 1 - 0.08 / whole, title, va="top", fontsize=9, fontweight="bold")
    if legend:
        handles = [
            Line2D([], [], color=g.colour, ls="--" if g.role == "teacher" else DASHES[g.cycle % 3], label=g.label)
            for g in legend
        ]
        figure.legend(handles=handles, loc="lower left", ncols=columns, fontsize=7.5, borderaxespad=0.2)


def page_svg(svg: str, prefix: str, alt: str) -> str:
    """Make matplotlib's SVG part of a page: no names that clash, the page's font and colours, short numbers.

    Args:
        svg: as saved.
        prefix: of all ids in it.
        alt: what it shows, in words.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="(series-\d+)[^"]*"', r'class="\1"', svg)
    wanted = set(re.findall(r'(?:url\(|href=")#([^")]*)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found.group() if found[1] in wanted else "", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--font)", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group()), svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head.group())
    assert box is not None
    label = escape(alt, quote=True)
    start = (
        f'<svg class="plot" role="img" aria-label="{label}" {box.group()} xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return start + re.sub(r"\n\s*", "\n", svg[head.end() :])


def percent_axis(axis: Any) -> None:
    """Label an axis of shares in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def log_scale(axis: Any) -> None:
    """Make an axis logarithmic, its ticks plain numbers: 1, 2 and 5 of each decade, or 1 alone where they are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def brief(name: str, longest: int = 24) -> str:
    """A name that is short enough for an axis; the page's tables have it whole.

    >>> brief("vehicle that nobody has ever seen")
    'vehicle that nobody has…'
    """
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def signed(value: float) -> str:
    """A difference of shares in points: +3.2 or −0.4."""
    return f"{100 * value:+.1f}".replace("-", "−")


def note(axes: "Axes", text: str) -> None:
    """A lesser line of text at the top right of a panel."""
    axes.set_title(text, loc="right", fontsize=7.5, fontweight="normal", color=MUTED)


def place_labels(axes: "Axes", points: Iterable[tuple[float, float, str]], size: float = 7.0) -> None:
    """Name points, each beside its point or, where that would hide another name, at the end of a line from it.

    Args:
        axes: with all that sets its limits; they stay as they are from here.
        points: (x, y, name), the most important first; a name that finds no place is left out.
        size: of the letters.
    """
    axes.axis(axes.axis())  # fits the limits to what is drawn, and keeps them
    points = list(points)
    scale = axes.figure.dpi / 72
    at = [axes.transData.transform((x, y)) / scale for x, y, _ in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    frame = axes.get_window_extent()
    left, bottom, right, top = (edge / scale for edge in frame.extents)
    for (px, py), (x, y, name) in zip(at, points, strict=True):
        width = 0.64 * size * len(name)
        for dx, dy, align in PLACES:
            start = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (start, py + dy - 0.25 * size, start + width, py + dy + 0.85 * size)  # dy is of the baseline
            inside = box[0] >= left and box[2] <= right and box[1] >= bottom and box[3] <= top
            if not inside or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            line = {"arrowstyle": "-", "lw": 0.6, "color": MUTED, "shrinkA": 0, "shrinkB": 0}
            axes.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=align,
                fontsize=size,
                color=INK,
                arrowprops=line if (dx, dy, align) in FAR else None,
            )
            break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
