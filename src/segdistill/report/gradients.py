"""How strongly each term pulls at the student over training, and whether it pulls where cross-entropy does."""

import math
from typing import TYPE_CHECKING

import numpy as np

from segdistill.report.figures import BAR, INK, MARGINS, MUTED, Album, Drawing, percent_axis
from segdistill.report.study import COLOURS, Group, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORM, COSINE = "gradient_", "cosine_"
OWN = ("ce", "jaccard", "aux")
"""The losses of the labels, drawn first and in grey."""

Curve = list[tuple[float, float]]


def gradients(album: Album, study: Study) -> list[Drawing]:
    """A figure for each group whose runs recorded the gradients of several terms: shares, and cosines with ce's."""
    drawings = []
    for group in study.groups:
        norms, cosines = _means(group, NORM), _means(group, COSINE)
        terms = sorted(norms, key=lambda term: (term not in OWN, OWN.index(term) if term in OWN else 0, term))
        steps, shares = _shares(norms, terms) if len(terms) > 1 else ([], {})
        if len(steps) < 2:
            continue
        ends = ", ".join(f"{term} {100 * share[-1]:.0f} %" for term, share in shares.items())
        turns = ", ".join(f"{term} {np.mean([y for _, y in points]):+.2f}" for term, points in cosines.items())
        turns = f"; mean cosine with cross-entropy's gradient: {turns}" if turns else ""  # none without cross-entropy
        drawings.append(
            album.draw(
                f"gradients_{group.slot}",
                group.label,
                f"{group.label}: shares of the terms' gradients over training, at the end {ends}{turns}",
                (3.5, 3.6),
                lambda figure, norms=norms, cosines=cosines, terms=terms: _paint(  # type: ignore[misc]
                    figure, norms, cosines, terms
                ),
                margins=(*MARGINS[:3], 0.1 + 0.16 * math.ceil(len(terms) / 2)),
            )
        )
    return drawings


def _means(group: Group, prefix: str) -> dict[str, Curve]:
    """Term → its mean curve."""
    keys = sorted(key for key in set().union(*(run.keys for run in group.runs)) if key.startswith(prefix))
    return {key.removeprefix(prefix): points for key in keys if (points := group.mean_series(key))}


def _shares(norms: dict[str, Curve], terms: list[str]) -> tuple[list[float], dict[str, list[float]]]:
    """Steps, and each term's share of the sum of all norms there."""
    known = {term: dict(norms[term]) for term in terms}
    steps = sorted(set.intersection(*map(set, known.values())))
    sums = {step: sum(known[term][step] for term in terms) or 1.0 for step in steps}
    return steps, {term: [known[term][step] / sums[step] for step in steps] for term in terms}


def _paint(figure: "Figure", norms: dict[str, Curve], cosines: dict[str, Curve], terms: list[str]) -> None:
    others = [term for term in terms if term not in OWN]
    colours = {term: COLOURS[index % len(COLOURS)] for index, term in enumerate(others)}
    colours |= {"ce": BAR, "jaccard": INK, "aux": MUTED}
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps, shares = _shares(norms, terms)
    above.stackplot(steps, list(shares.values()), colors=[colours[term] for term in terms], labels=terms, lw=0)
    above.set_ylim(0, 1)
    above.set_ylabel("share, %")
    percent_axis(above.yaxis)
    above.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=7, borderaxespad=0.1, handlelength=1)
    _cosines(below, {term: cosines[term] for term in terms if term in cosines}, colours)


def _cosines(axes: "Axes", curves: dict[str, Curve], colours: dict[str, str]) -> None:
    for term, points in curves.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colours[term], marker="o", ms=2)
    axes.axhline(0, color=BAR, lw=1)
    axes.set_ylim(-1, 1)
    axes.set_ylabel("cosine with ce")
    axes.set_xlabel("step")
