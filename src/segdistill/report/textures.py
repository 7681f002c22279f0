"""What SSTKD sees of one image: low-level features, their subbands, their quantisation, the regions that it samples."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.data.files import read_image
from segdistill.engine.build import tap
from segdistill.engine.config import load_config
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.student import load_student, read_card, student_path
from segdistill.methods._stages import UnitChannels, both_stages
from segdistill.texture import (
    Contourlet,
    clip_counts,
    contourlet,
    count,
    crop_regions,
    heuristic_levels,
    inverse_contourlet,
    mean_similarity,
    quantise,
    sample_regions,
    uniform_levels,
)

LEVELS = (4, 3)
"""Directional levels of the two scales, the paper's."""
NUM_LEVELS, CLIP, REGIONS, REGION_SIZE = 32, 0.5, 64, 16
"""Quantisation levels, θ of the denoising, regions and their positions along each side: the method's defaults."""
SMALLEST = 64
"""Pixels along each side below which there is nothing to see: 8×8 cells at stride 8."""


@dataclass(frozen=True)
class LowLevel:
    """One network's low-level features of the image.

    Args:
        name: of the network, and what it was trained with.
        low1: mean over channels (H,W), stride 4.
        low2: likewise, stride 8.
        stages: both stages as the method compares them (1,A,h,w), each channel at a mean square of 1 on this image.
        bands: mean square over channels of the contourlet coefficients, per scale and direction.
    """

    name: str
    low1: Tensor
    low2: Tensor
    stages: Tensor
    bands: list[list[Tensor]]

    def energies(self, scale: int) -> Tensor:
        """Mean square of each subband of a scale."""
        return torch.stack([band.mean() for band in self.bands[scale]])


@dataclass(frozen=True)
class Histogram:
    """One region, quantised and counted.

    Args:
        similarity: of each position to the region's mean feature (P,).
        levels: (N,).
        counts: share of each level (N,).
        denoised: the same with its peaks cut off and spread (N,).
    """

    similarity: Tensor
    levels: Tensor
    counts: Tensor
    denoised: Tensor

    @property
    def entropy(self) -> float:
        """Of the counts, as a share of that of equal counts: 1 is flat."""
        return float(-torch.xlogy(self.counts, self.counts).sum() / torch.tensor(float(len(self.counts))).log())


@dataclass(frozen=True)
class Regions:
    """The regions of one draw.

    Args:
        source: whose features they were drawn from.
        importance: mean over channels (h,w), whose variance decides.
        important: boxes (R,4) in cells that were drawn by variance, x1 y1 x2 y2.
        uniform: the others, drawn anywhere.
    """

    source: str
    importance: Tensor
    important: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class Textures:
    """All that is drawn of one image.

    Args:
        image: (3,H,W) in 0…1.
        networks: by role, `baseline`, `model`, `teacher`, those that were given.
        regions: drawn from the teacher's features, or the model's where there is none.
        histograms: by what is counted (`whole map`, `one region`) and by how levels are placed (`uniform`,
            `heuristic`).
        box: of the one region, in cells.
    """

    image: Tensor
    networks: dict[str, LowLevel]
    regions: Regions
    histograms: dict[str, dict[str, Histogram]]
    box: Tensor


def read_textures(
    image: str | Path,
    model: str | Path,
    *,
    teacher: str | Path | None = None,
    baseline: str | Path | None = None,
    size: tuple[int, int] | None = None,
) -> Textures:
    """Run the networks on one image, and compute what SSTKD compares of them.

    Args:
        image: file.
        model: run folder or student.safetensors; a student that was trained with SSTKD.
        teacher: likewise; regions and histograms are the teacher's where it is given, as in training.
        baseline: likewise; the same student without SSTKD.
        size: (H,W) that the image is resized to first; None: as it is.

    Raises:
        ValueError: if a file is missing, the image is too small, or a network has no taps `low1` and `low2`.
    """
    pixels = _read(Path(image), size, model)
    paths = {"baseline": baseline, "model": model, "teacher": teacher}
    networks = {role: low_level(path, pixels) for role, path in paths.items() if path is not None}
    source = networks.get("teacher", networks["model"])
    importance = source.stages.mean(1)
    generator = torch.Generator().manual_seed(0)
    boxes = sample_regions(importance, REGIONS, important=0.75, generator=generator)
    many = round(0.75 * REGIONS)
    crops = crop_regions(source.stages, boxes, REGION_SIZE)
    similarity = mean_similarity(crops.flatten(2))
    chosen = similarity[:many].var(1).argmax()
    parts = {"whole map": mean_similarity(source.stages.flatten(2))[0], "one region": similarity[chosen]}
    return Textures(
        image=pixels,
        networks=networks,
        regions=Regions(source.name, importance[0], boxes[0, :many], boxes[0, many:]),
        histograms={part: histograms(values) for part, values in parts.items()},
        box=boxes[0, chosen],
    )


def _read(path: Path, size: tuple[int, int] | None, model: str | Path) -> Tensor:
    if not path.is_file():
        raise ValueError(f"no image at {path}; give one image file")
    pixels = read_image(path, image_range=read_card(model).get("image_range"))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if size is not None:
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    height, width = image.shape[1:]
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"{path}: {height}×{width} is too small to show textures of, {SMALLEST}×{SMALLEST} is the least; "
            "give a larger image, or --size"
        )
    return image


@torch.no_grad()
def low_level(path: str | Path, image: Tensor) -> LowLevel:
    """A trained network's low-level features of an image.

    Args:
        path: run folder or student.safetensors.
        image: (3,H,W) in 0…1.

    Raises:
        ValueError: if there is no student, or it has no taps `low1` and `low2`.
    """
    network = load_student(path)
    card = network.card
    assert isinstance(card, Mapping)
    folder = student_path(path).parent
    tapped = tap(network, load_config(folder).student if (folder / CONFIG).is_file() else None)
    if not {"low1", "low2"} <= tapped.paths.keys():
        raise ValueError(
            f"{path} has no taps low1 and low2 but {', '.join(tapped.paths) or 'none at all'}; "
            "name its first two stages in its configuration: student.taps"
        )
    taps = {name: seen.float() for name, seen in tapped(image[None], ["low1", "low2"]).items()}
    stages = both_stages(taps)
    stages = UnitChannels(stages.shape[1])(stages)
    bands = [[band.square().mean((0, 1)) for band in scale] for scale in contourlet(stages, LEVELS).bands]
    name = (card.get("network") or {}).get("name", "network")
    methods = " + ".join(card.get("method", []))
    name = f"{name}, {methods}" if methods not in ("", "none") else name
    return LowLevel(name, taps["low1"][0].mean(0), taps["low2"][0].mean(0), stages, bands)


def histograms(similarity: Tensor) -> dict[str, Histogram]:
    """Quantise one region's similarities by uniform and by heuristic levels.

    Args:
        similarity: (P,).
    """
    found = {}
    for kind, place in (("uniform", uniform_levels), ("heuristic", heuristic_levels)):
        levels = place(similarity[None], NUM_LEVELS)
        counts = count(quantise(similarity[None], levels))
        found[kind] = Histogram(similarity, levels[0], counts[0], clip_counts(counts, CLIP)[0])
    return found


@functools.cache
def atoms(scale: int, size: int = 64) -> Tensor:
    """The pattern that each subband of a scale stands for, (K,size,size): the map of a single coefficient.

    Args:
        scale: 0 is the finest.
        size: cells along each side.
    """
    empty = contourlet(torch.zeros(1, 2 ** LEVELS[scale], size, size), LEVELS)
    for k, band in enumerate(empty.bands[scale]):
        band[0, k, band.shape[2] // 2, band.shape[3] // 2] = 1
    return inverse_contourlet(Contourlet(empty.low, empty.bands))[0]


@functools.cache
def orientations(scale: int) -> Tensor:
    """Direction in which the stripes of each subband of a scale run, in degrees from 0 (horizontal) to 180, (K,).

    Measured on the subbands' patterns: the mean direction of their power spectrum, turned by a right angle.

    Args:
        scale: 0 is the finest.
    """
    patterns = atoms(scale)
    power = torch.fft.fft2(patterns).abs().square()
    down, right = torch.meshgrid(*[torch.fft.fftfreq(n) for n in patterns.shape[1:]], indexing="ij")
    # A stripe has no front: angles that differ by half a turn are one, so their doubles are averaged.
    angle = 2 * torch.atan2(-down, right)
    mean = torch.atan2((power * angle.sin()).sum((1, 2)), (power * angle.cos()).sum((1, 2))) / 2
    return (mean.rad2deg() + 90) % 180
