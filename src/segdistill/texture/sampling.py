"""Where texture is worth comparing: regions drawn by how much a map varies inside them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill._draws import uniform_of_images
from segdistill.functional import exact, full_precision

SCALES = (8.0, 16.0, 32.0)
"""Square roots of the anchors' areas, in cells."""
RATIOS = (0.5, 1.0, 2.0)
"""Heights of the anchors over their widths."""


def candidate_boxes(
    images: int,
    size: tuple[int, int],
    points: int,
    *,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Anchors of all scales and ratios around uniformly drawn points, (images, points·scales·ratios, 4) int64.

    A box is (x1, y1, x2, y2) in whole cells, the last ones exclusive. Near the border it is moved inside; on a map that
    is smaller than the anchor it is as large as the map.

    Args:
        images: N.
        size: (H,W) of the map in cells.
        points: how many for each image.
        scales: square roots of the areas, in cells.
        ratios: heights over widths.
        device: of the result.
        generator: for the points; default: that of the step in a run, else torch's own, of that device.

    >>> candidate_boxes(1, (4, 9), 1, scales=[2], ratios=[1, 4], generator=torch.Generator().manual_seed(0)).tolist()
    [[[3, 2, 5, 4], [4, 0, 5, 4]]]
    """
    limits = torch.tensor((size[1], size[0]), device=device)
    root = torch.tensor([[ratio**-0.5, ratio**0.5] for ratio in ratios], device=device)
    extents = torch.tensor(scales, device=device)[:, None, None] * root
    extents = torch.minimum(extents.round().long().clamp_min(1), limits).view(-1, 2)  # (anchors, 2)
    centres = _uniform(images, points, 1, 2, device=device, generator=generator) * limits
    corners = (centres - extents / 2).round().long().clamp_min(0)
    corners = torch.minimum(corners, limits - extents)
    return torch.cat([corners, corners + extents], dim=-1).flatten(1, 2)


def box_variance(x: Tensor, boxes: Tensor) -> Tensor:
    """Variance of a one-channel map inside each box, (N,R), float64, through integral images.

    Args:
        x: (N,H,W).
        boxes: (N,R,4) int64, as `candidate_boxes` gives them.

    Raises:
        ValueError: on other shapes.

    >>> x = torch.tensor([[[0.0, 2.0], [0.0, 6.0]]])
    >>> box_variance(x, torch.tensor([[[0, 0, 2, 1], [0, 0, 2, 2]]])).tolist()
    [[1.0, 6.0]]
    """
    if x.dim() != 3 or boxes.dim() != 3 or boxes.shape[0] != x.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"expected (N,H,W) and boxes (N,R,4), got {tuple(x.shape)} and {tuple(boxes.shape)}")
    n, h, w = x.shape
    device, x = x.device, exact(x)
    boxes = boxes.to(x.device)
    x = x - x.mean((1, 2), keepdim=True)  # the difference of squares below is of the size of what it subtracts
    integral = x.new_zeros(2, n, h + 1, w + 1)
    integral[:, :, 1:, 1:] = torch.stack([x, x.square()]).cumsum(2).cumsum(3)
    x1, y1, x2, y2 = boxes.unbind(2)

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return integral.flatten(2).gather(2, (y * (w + 1) + x).expand(2, -1, -1))

    mean, square = (corner(y2, x2) - corner(y1, x2) - corner(y2, x1) + corner(y1, x1)) / ((y2 - y1) * (x2 - x1))
    variance: Tensor = square - mean.square()
    return variance.clamp_min(0.0).float().to(device) if x.device != device else variance.clamp_min(0.0)


@full_precision
@torch.no_grad()
def sample_regions(
    importance: Tensor,
    regions: int = 64,
    *,
    oversample: int = 3,
    important: float = 0.75,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Regions of each image, most of them where a map varies, (N,regions,4) int64 boxes in cells.

    Of the anchors around `oversample`·`regions` points, a share `important` is drawn with a probability in proportion
    to the map's variance inside, the rest uniformly; none twice. The first ones are those that variance chose.

    Args:
        importance: (N,H,W), in SSTKD the mean over channels of the teacher's features.
        regions: how many for each image.
        oversample: k; 3 in the paper.
        important: β; 0.75 in the paper.
        scales: square roots of the anchors' areas, in cells.
        ratios: heights of the anchors over their widths.
        generator: default: that of the step in a run, else torch's own, of the map's device.

    Raises:
        ValueError: on another rank, fewer than one region or point for each, or a share outside 0…1.

    Source:
        Ji et al., Structural and Statistical Texture Knowledge Distillation for Semantic Segmentation (CVPR 2022); the
        scheme is PointRend's (Kirillov et al., 2020). The paper does not give scales and ratios.

    >>> sample_regions(torch.randn(2, 20, 30), 5).shape
    torch.Size([2, 5, 4])
    """
    if importance.dim() != 3:
        raise ValueError(f"importance: expected (N,H,W), got {tuple(importance.shape)}")
    if regions < 1 or oversample < 1 or not 0 <= important <= 1:
        raise ValueError(
            f"expected regions and oversample of at least 1, and important from 0 to 1, got {regions}, {oversample}, "
            f"{important}"
        )
    n, h, w = importance.shape
    boxes = candidate_boxes(
        n,
        (h, w),
        oversample * regions,
        scales=scales,
        ratios=ratios,
        device=importance.device,
        generator=generator,
    )
    weight = box_variance(importance, boxes)
    # A share of uniform chance, too small to matter, lets a draw succeed where fewer boxes than asked for vary.
    weight = weight / weight.amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) + 1e-6
    many = round(important * regions)
    chance = _uniform(n, 2, weight.shape[1], device=weight.device, generator=generator)
    # Who is first where each waits for an exponential time, the shorter the larger the weight, is drawn by weight.
    drawn = (weight / -chance[:, 0].log()).topk(many).indices
    others = chance[:, 1].scatter(1, drawn, -1.0).topk(regions - many).indices
    return boxes.gather(1, torch.cat([drawn, others], dim=1)[:, :, None].expand(-1, -1, 4))


def _uniform(images: int, *shape: int, device: torch.device | str, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return uniform_of_images(images, *shape, device=device)
    return torch.rand(images, *shape, generator=generator, device=device)


@full_precision
def crop_regions(x: Tensor, boxes: Tensor, size: int = 16) -> Tensor:
    """Regions of a map at one size by RoIAlign, (N·R,A,size,size), in the order of the images.

    What torchvision's `roi_align(…, sampling_ratio=1, aligned=True)` gives, as a sum over bags of four cells, which
    takes a fraction of its time on a CPU. One sample for each position: a mean would smooth the texture away.

    Args:
        x: (N,A,H,W).
        boxes: (N,R,4) in cells.
        size: positions of a region along each side.

    Raises:
        ValueError: on other shapes.

    >>> x = torch.arange(4.0).expand(1, 1, 4, 4)
    >>> crop_regions(x, torch.tensor([[[1, 0, 3, 4]]]), 2)[0, 0].tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    if x.dim() != 4 or boxes.dim() != 3 or boxes.shape[0] != x.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"expected (N,A,H,W) and boxes (N,R,4), got {tuple(x.shape)} and {tuple(boxes.shape)}")
    n, channels, height, width = x.shape
    start, end = boxes[:, :, None].to(x.dtype).chunk(2, dim=3)
    centres = (torch.arange(size, dtype=x.dtype, device=x.device)[:, None] + 0.5) / size
    place = start + (end - start) * centres - 0.5  # (N,R,size,2), in units of cells from the first one's centre
    last = torch.tensor((width - 1, height - 1), device=x.device)
    place = torch.minimum(place.clamp_min(0), last.to(x.dtype))
    cell, share = place.long(), place.frac()
    columns, rows = torch.stack([cell, torch.minimum(cell + 1, last)]).unbind(4)  # each (2,N,R,size)
    left, top = torch.stack([1 - share, share]).unbind(4)
    image = torch.arange(n, device=x.device).view(-1, 1, 1, 1) * (height * width)
    index = rows[:, None, ..., None] * width + columns[:, :, :, None] + image  # (2,2,N,R,size,size)
    weights = top[:, None, ..., None] * left[:, :, :, None]
    bags, weights = (t.flatten(0, 1).flatten(1).T.contiguous() for t in (index, weights))
    cells = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    regions = F.embedding_bag(bags, cells, mode="sum", per_sample_weights=weights)
    return regions.view(-1, size, size, channels).permute(0, 3, 1, 2)
