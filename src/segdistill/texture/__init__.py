"""Texture: what SSTKD is built from, usable alone."""

from segdistill.texture.contourlet import (
    Contourlet,
    analysis_operations,
    contourlet,
    contourlet_energy,
    contourlet_operations,
    inverse_contourlet,
)
from segdistill.texture.quantize import (
    Kernel,
    clip_counts,
    count,
    encode,
    heuristic_levels,
    mean_similarity,
    quantise,
    uniform_levels,
    widen_levels,
)
from segdistill.texture.sampling import box_variance, candidate_boxes, crop_regions, sample_regions

__all__ = [
    "Contourlet",
    "Kernel",
    "analysis_operations",
    "box_variance",
    "candidate_boxes",
    "clip_counts",
    "contourlet",
    "contourlet_energy",
    "contourlet_operations",
    "count",
    "crop_regions",
    "encode",
    "heuristic_levels",
    "inverse_contourlet",
    "mean_similarity",
    "quantise",
    "sample_regions",
    "uniform_levels",
    "widen_levels",
]
