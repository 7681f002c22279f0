"""The pictures of `segdistill textures`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.engine.run_folder import make_folder
from segdistill.report.figures import save_figure
from segdistill.report.textures import CLIP, LowLevel, Textures, atoms, orientations

INK, MUTED, PALE = "#22262b", "#7a828c", "#d9dde2"
ROLES = {"baseline": "#8a93a0", "model": "#d1495b", "teacher": "#1f6f8b"}
"""Colours of the networks, told apart without red and green."""
HEAT, RELIEF = "magma", "cividis"
FEATURES_NOTE = """Mean over channels of the backbone's first
two stages. Each map has its own colours,
from its 1st to its 99th percentile."""
SUBBANDS_NOTE = (
    "Root mean square over the channels of both stages, each channel scaled to a mean square of 1; one colour "
    "scale for each scale; inset: the subband's own pattern"
)
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}


def draw_textures(textures: Textures, out: str | Path) -> list[Path]:
    """Draw all pictures as PNG files.

    Args:
        textures: what `read_textures` returned.
        out: folder; made if it is missing.

    Returns:
        The files: `features`, `directions`, `regions`, `quantisation`, and `contourlet_<role>` of each network.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("pictures need matplotlib; pip install 'segdistill[report]'") from None
    out = Path(out)
    make_folder(out)
    files = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(textures):
            files.append(out / f"{name}.png")
            save_figure(figure, files[-1])
    return files


def _figures(textures: Textures) -> Iterator[tuple[str, Any]]:
    yield "features", draw_features(textures)
    for role, network in textures.networks.items():
        yield f"contourlet_{role}", draw_subbands(network, role, textures.image)
    yield "directions", draw_directions(textures)
    yield "regions", draw_regions(textures)
    yield "quantisation", draw_histograms(textures)


def _figure(width: float, height: float, title: str, note: str = "") -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=MUTED)
    return figure


def _picture(axes: Any, values: Tensor, title: str = "", **options: Any) -> None:
    """An image or a map without ticks; a map is stretched to where it lies in the image."""
    rgb = values.dim() == 3
    axes.imshow(values.permute(1, 2, 0).numpy() if rgb else values.numpy(), **options)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title)


def _limits(values: Tensor) -> dict[str, float]:
    """Colour limits that a few extreme cells do not decide."""
    low, high = torch.quantile(values.flatten(), torch.tensor([0.01, 0.99])).tolist()
    return {"vmin": low, "vmax": max(high, low + 1e-12)}


def _extent(image: Tensor) -> tuple[float, float, float, float]:
    return (0.0, float(image.shape[2]), float(image.shape[1]), 0.0)


def draw_features(textures: Textures) -> Any:
    """Mean over channels of both stages, network by network, beside the image (as SSTKD's figures 3 and 4)."""
    image, columns = textures.image, len(textures.networks) + 1
    aspect = image.shape[1] / image.shape[2]
    figure = _figure(3.2 * columns, 2 * (3.2 * aspect + 0.35) + 0.4, "Low-level features")
    panels = figure.subplots(2, columns)
    _picture(panels[0, 0], image, f"image, {image.shape[1]}×{image.shape[2]}", extent=_extent(image))
    panels[1, 0].set_axis_off()
    panels[1, 0].text(0, 1, FEATURES_NOTE, va="top", fontsize=8, color=MUTED, transform=panels[1, 0].transAxes)
    for column, (role, network) in enumerate(textures.networks.items(), start=1):
        for axes, stage, values in zip(panels[:, column], ("low1", "low2"), (network.low1, network.low2), strict=True):
            title = f"{stage}, {values.shape[0]}×{values.shape[1]}"
            title = f"{role}: {network.name}\n{title}" if stage == "low1" else title
            _picture(axes, values, title, cmap=RELIEF, extent=_extent(image), **_limits(values))
            axes.title.set_color(ROLES[role])
    return figure


def draw_subbands(network: LowLevel, role: str, image: Tensor) -> Any:
    """Energy of each contourlet subband where it lies in the image, with the pattern that the subband stands for."""
    from matplotlib.figure import Figure

    # Laid out by hand: the automatic layout takes many seconds over so many panels.
    width, gap, head = 2.7, 0.08, 0.26
    height = width * image.shape[1] / image.shape[2]
    size = (4 * (width + gap) + gap, 0.45 + 2 * 0.36 + 6 * (height + head) + 0.35)
    figure = Figure(figsize=size)

    def put(text: str, y: float, **options: Any) -> None:
        figure.text(gap / size[0], 1 - y / size[1], text, va="center", **options)

    put(f"Contourlet subbands of {role}: {network.name}", 0.22, fontsize=11, fontweight="bold", color=INK)
    top = 0.45
    for scale, rows in enumerate((4, 2)):
        put(f"{('fine', 'coarse')[scale]} scale, {4 * rows} directions of the stripes", top + 0.2, fontsize=9)
        angles, patterns = orientations(scale), _centred(atoms(scale), 12 << scale)
        highest = max(float(band.sqrt().quantile(0.995)) for band in network.bands[scale])
        for place, k in enumerate(angles.argsort().tolist()):
            row, column = divmod(place, 4)
            left, bottom = gap + column * (width + gap), top + 0.36 + (row + 1) * (height + head)
            axes = figure.add_axes((left / size[0], 1 - bottom / size[1], width / size[0], height / size[1]))
            band = network.bands[scale][k]
            options = {"vmin": 0, "vmax": max(highest, 1e-12), "extent": _extent(image), "aspect": "auto"}
            _picture(axes, band.sqrt(), f"{angles[k]:.0f}°", cmap=HEAT, interpolation="bilinear", **options)
            axes.set_title(f"energy {band.mean():.2g}", loc="right", fontsize=8, color=MUTED)
            _inset(axes, patterns[k], height / width)
        top += 0.36 + rows * (height + head)
    put(SUBBANDS_NOTE, size[1] - 0.15, fontsize=8, color=MUTED)
    return figure


def _inset(axes: Any, pattern: Tensor, aspect: float) -> None:
    share = 0.42
    inset = axes.inset_axes((1 - share * aspect, 1 - share, share * aspect, share))
    reach = float(pattern.abs().max())
    inset.imshow(pattern.numpy(), cmap="gray", vmin=-reach, vmax=reach, interpolation="bicubic", aspect="auto")
    inset.set(xticks=[], yticks=[])
    inset.spines[:].set(visible=True, color="white", linewidth=0.8)


def _centred(patterns: Tensor, size: int) -> Tensor:
    """The middle size×size of periodic patterns, each rolled so that its energy is there."""
    moved = []
    for pattern in patterns:
        power = F.avg_pool2d(pattern.square()[None, None], 9, 1, 4)[0, 0]
        row, column = divmod(int(power.argmax()), pattern.shape[1])
        moved.append(pattern.roll((size // 2 - row, size // 2 - column), (0, 1))[:size, :size])
    return torch.stack(moved)


def draw_directions(textures: Textures) -> Any:
    """Energy by direction, network by network; the structural term compares it after the student's projection."""
    figure = _figure(10.5, 3.6, "Subband energy by direction")
    both = figure.subplots(1, 2, sharey=True)
    for scale, axes in enumerate(both):
        angles = orientations(scale)
        order = angles.argsort()
        for role, network in textures.networks.items():
            energy = network.energies(scale)[order]
            # The circle is closed: the last direction comes again before the first, and the other way round.
            x = torch.cat([angles[order][-1:] - 180, angles[order], angles[order][:1] + 180])
            y = torch.cat([energy[-1:], energy, energy[:1]])
            label = f"{role}: {network.name}"
            axes.plot(x.numpy(), y.numpy(), color=ROLES[role], marker="o", ms=3.5, lw=1.6, label=label)
        axes.set(xlim=(0, 180), xticks=[0, 45, 90, 135, 180], title=f"{('fine', 'coarse')[scale]} scale")
        axes.set_xlabel("direction of the stripes")
        axes.set_xticklabels(["0° —", "45° ∕", "90° |", "135° ∖", "180° —"])
        axes.grid(axis="y", color=PALE, lw=0.6)
        axes.set_axisbelow(True)
    both[0].set(ylim=(0, None), ylabel="mean square")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower right", ncols=len(textures.networks))
    return figure


def draw_regions(textures: Textures) -> Any:
    """The sampled regions on the image, what decided about them, and how often each place was drawn."""
    from matplotlib.patches import Rectangle

    image, regions = textures.image, textures.regions
    aspect = image.shape[1] / image.shape[2]
    figure = _figure(13.0, 13.0 / 3 * aspect + 0.75, f"Sampled regions: {regions.source}")
    panels = figure.subplots(1, 3)
    extent = _extent(image)
    height, width = regions.importance.shape
    steps = image.shape[2] / width, image.shape[1] / height

    def outline(axes: Any, box: Sequence[int], **options: Any) -> None:
        left, top, right, bottom = (edge * steps[i % 2] for i, edge in enumerate(box))
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **options))

    many = len(regions.important), len(regions.uniform)
    title = f"{many[0]} drawn by variance (red), {many[1]} drawn anywhere (blue)"
    _picture(panels[0], 0.45 * image + 0.55, title, extent=extent)
    for boxes, colour in ((regions.uniform, ROLES["teacher"]), (regions.important, ROLES["model"])):
        for box in boxes.tolist():
            outline(panels[0], box, edgecolor=colour, lw=0.8, alpha=0.7)
    _picture(
        panels[1],
        regions.importance,
        "mean over channels, whose variance decides",
        cmap=RELIEF,
        extent=extent,
        **_limits(regions.importance),
    )
    drawn = torch.zeros(height, width)
    for left, top, right, bottom in torch.cat([regions.important, regions.uniform]).tolist():
        drawn[top:bottom, left:right] += 1
    title = f"regions at each place, 0 to {int(drawn.max())}; dashed: the one that is counted"
    _picture(panels[2], drawn, title, cmap=HEAT, extent=extent, vmin=0)
    outline(panels[2], textures.box.tolist(), edgecolor="white", lw=1.4, linestyle="--")
    return figure


def draw_histograms(textures: Textures) -> Any:
    """Counts of the levels before and after denoising, by uniform and by heuristic levels."""
    note = f"grey: how frequent each similarity is; dotted: what exceeds {CLIP:g} of the largest count is spread"
    figure = _figure(11.0, 6.4, f"Quantise and count: {textures.regions.source}", note)
    panels = figure.subplots(2, 2, sharex="row", sharey="row")
    for row, (part, kinds) in zip(panels, textures.histograms.items(), strict=True):
        for axes, (kind, found) in zip(row, kinds.items(), strict=True):
            span = (float(found.similarity.min()), float(found.similarity.max()))
            gaps = found.levels.diff()
            widths = torch.cat([gaps[:1], torch.minimum(gaps[:-1], gaps[1:]), gaps[-1:]]).numpy() * 0.9
            levels = found.levels.numpy()
            density = axes.twinx()
            density.hist(found.similarity.numpy(), bins=80, range=span, color=PALE)
            density.set(yticks=[])
            density.spines[:].set_visible(False)
            axes.set_zorder(density.get_zorder() + 1)
            axes.patch.set_visible(False)
            axes.bar(levels, found.counts.numpy(), widths, color=ROLES["model"], alpha=0.35, label="counts")
            axes.bar(
                levels,
                found.denoised.numpy(),
                widths,
                fill=False,
                edgecolor=ROLES["teacher"],
                lw=1.1,
                label="denoised counts",
            )
            axes.axhline(CLIP * float(found.counts.max()), color=MUTED, lw=0.8, ls=":")
            axes.plot(levels, [0.0] * len(levels), "|", color=INK, ms=7, mew=0.8, clip_on=False, label="levels")
            axes.set_title(f"{part}, {kind} levels: entropy {100 * found.entropy:.1f} % of the largest")
        row[0].set_ylabel("share")
    for axes in panels[1]:
        axes.set_xlabel("cosine of a position's feature with the mean feature")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure
