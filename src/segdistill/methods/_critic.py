"""The critic of the adversarial methods: a Wasserstein distance between the students' and the teachers' maps.

All that a method needs for its holistic term, besides a weight and the option dictionary of its critic::

    def make_critic(self):
        return Critic(self.num_classes) if self.holistic_weight else None

    def make_critic_optimizer(self, critic):
        return critic_optimizer(critic, "adam", lr=4e-4)

    def adversarial_loss(self, critic, student, teacher):
        return {"holistic": self.holistic_weight * holistic_loss(critic, student["logits"], student["image"])}

    def critic_loss(self, critic, student, teacher):
        return critic_terms(critic, student["logits"], teacher["logits"], student["image"])
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import cached

from segdistill._draws import uniform_of_images
from segdistill.functional import full_precision
from segdistill.taps import resize

ROOT = 1e-12
"""Added under the root of the penalty's norm, whose slope at 0 would be infinite."""


CRITIC_NOTE = (
    "A dot per image: the score that the critic gives to a network's class map, as in SKD's Figure 3. It was trained "
    "to score the teacher's maps high and the student's low. A student that the holistic term has brought near its "
    "teacher scores higher than one that was trained without it."
)
"""How scores are to be read."""


class SelfAttention(nn.Module):
    """γ·v·attnᵀ + x, every position of a map looking at all others; γ starts at 0 (Zhang et al., SAGAN, 2019).

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N,channels,H,W) → the same shape."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        # Written out: the fused attention kernels have no second derivative, which the penalty needs.
        attention = (query.transpose(1, 2) @ key).softmax(2)
        out: Tensor = self.gamma * (value @ attention.transpose(1, 2)).view_as(x) + x
        return out


class Critic(nn.Module):
    """Scores class maps: high for the teacher's, low for the student's, given the image they belong to.

    Four spectrally normalised 4×4 convolutions of stride 2 (64-128-256-512 channels, LeakyReLU 0.1), self-attention
    after the third and the fourth, a last 4×4 convolution to one channel, mean over positions.

    Args:
        num_classes: C.
        image_channels: of the image that the critic sees beside the map; 0 = the map alone.
        sees: "probabilities", the softmax over classes, as in the paper; or "logits", raw and through a BatchNorm, as
            in the released code.
        width: channels of the first convolution; each of the next three has twice as many as the one before.

    Source:
        Liu et al., Structured Knowledge Distillation for Semantic Segmentation (CVPR 2019), section 3.2.
    """

    def __init__(
        self,
        num_classes: int,
        image_channels: int = 3,
        *,
        sees: Literal["probabilities", "logits"] = "probabilities",
        width: int = 64,
    ):
        super().__init__()
        self.image_channels = image_channels
        self.sees = sees
        # Statistics of each batch, none remembered: as in the released code's training mode, and without buffers that
        # the student's step would change.
        norm = nn.BatchNorm2d(num_classes, track_running_stats=False)
        self.norm: nn.Module = norm if sees == "logits" else nn.Identity()
        widths = (num_classes + image_channels, width, 2 * width, 4 * width, 8 * width)
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths))
        self.attention = nn.ModuleDict({"2": SelfAttention(4 * width), "3": SelfAttention(8 * width)})
        self.last = nn.Conv2d(8 * width, 1, 4)

    def maps(self, logits: Tensor) -> Tensor:
        """What the critic sees of logits (N,C,H,W); real and fake ones are blended in this form."""
        return logits.softmax(1) if self.sees == "probabilities" else logits

    def forward(self, maps: Tensor, image: Tensor | None = None) -> Tensor:
        """Scores (N,).

        Args:
            maps: (N,C,H,W) as `maps` gives them, of any size.
            image: (N,image_channels,h,w), resized to the map here; not read if `image_channels` is 0.
        """
        x = self.norm(maps)
        if self.image_channels:
            if image is None:
                raise ValueError("this critic needs the image beside the map; give it, or set image_channels=0")
            x = torch.cat([x, resize(image, (x.shape[2], x.shape[3]))], dim=1)
        for index, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(pad_to(x, 2)), 0.1)
            if str(index) in self.attention:
                x = self.attention[str(index)](x)
        # Differs from the paper: maps of less than 64×64 do not reach the last kernel's size; they get a zero border.
        return self.last(pad_to(x, 4)).mean((1, 2, 3))  # type: ignore[no-any-return]


def pad_to(x: Tensor, size: int) -> Tensor:
    """Put a zero border around (N,A,H,W) so that it is at least size×size; the same tensor where it is.

    Args:
        x: the map.
        size: pixels.

    >>> pad_to(torch.ones(1, 1, 1, 5), 4).shape
    torch.Size([1, 1, 4, 5])
    """
    h, w = (max(size - n, 0) for n in x.shape[2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2)) if h or w else x


@full_precision
def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, weight: float = 10.0) -> Tensor:
    """Penalty on slopes other than 1, weight·(‖∇D(x̂)‖₂ − 1)², mean over images; x̂ is a random blend of real and fake.

    One blend factor per image, drawn uniformly. The gradient is that of the scores' sum: with a
    critic that couples the images of a batch (BatchNorm) it is not exactly each image's own, as in the released code.

    Args:
        critic: D, gives one score per image.
        real: (N,...) what the critic is to score high, detached here.
        fake: (N,...) same shape, detached here.
        weight: of the penalty; 10 in the paper.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Gulrajani et al., Improved Training of Wasserstein GANs (2017), eq. 3; SKD, eq. 6 (with a constant in the root).

    >>> slope = torch.tensor([3.0, 4.0])
    >>> round(gradient_penalty(lambda x: x @ slope, torch.randn(5, 2), torch.randn(5, 2)).item(), 3)
    160.0
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} need equal shapes")
    share = uniform_of_images(real.shape[0], *[1] * (real.dim() - 1), dtype=real.dtype, device=real.device)
    blend = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(blend).sum(), blend, create_graph=True)
    norm = (slope.flatten(1).square().sum(1) + ROOT).sqrt()
    return weight * (norm - 1).square().mean()


@full_precision
def holistic_loss(critic: Critic, student: Tensor, image: Tensor | None = None) -> Tensor:
    """The student's side of the game, −E[D(student)]; the critic's buffers stay as they are.

    Args:
        critic: the critic, frozen by the caller; put into eval mode, where spectral normalisation iterates no further.
        student: logits (N,C,H,W).
        image: (N,3,h,w), for a critic that sees it.
    """
    scores: Tensor = critic.eval()(critic.maps(student), image)
    return -scores.mean()


@full_precision
def critic_terms(
    critic: Critic, student: Tensor, teacher: Tensor, image: Tensor | None = None, *, weight: float = 10.0
) -> dict[str, Tensor]:
    """The critic's side of the game: `wasserstein`, E[D(student)] − E[D(teacher)], and `penalty`.

    Args:
        critic: the critic, put into training mode.
        student: logits (N,C,H,W), detached here.
        teacher: logits (N,C,H,W), detached here.
        image: (N,3,h,w), for a critic that sees it.
        weight: of the penalty.
    """
    fake, real = critic.train().maps(student.detach()), critic.maps(teacher.detach())
    with cached():  # one power iteration per step, and one critic in all three terms
        return {
            "wasserstein": critic(fake, image).mean() - critic(real, image).mean(),
            "penalty": gradient_penalty(lambda maps: critic(maps, image), real, fake, weight=weight),
        }


@full_precision
def critic_scores(
    critic: Critic, student: Tensor, others: Mapping[str, Tensor], image: Tensor | None = None
) -> dict[str, Tensor]:
    """What a trained critic thinks of networks, one score per image (N,), the more the better; `student` comes last.

    Args:
        critic: as training left it; put into eval mode.
        student: logits (N,C,H,W).
        others: logits of other networks by name; those of other classes are left out.
        image: (N,3,h,w), for a critic that sees it.
    """
    seen = {name: logits for name, logits in others.items() if logits.shape[1] == student.shape[1]}
    return {name: critic.eval()(critic.maps(logits), image) for name, logits in {**seen, "student": student}.items()}


def critic_optimizer(critic: nn.Module, kind: Literal["adam", "sgd"], *, lr: float = 4e-4) -> torch.optim.Optimizer:
    """The critic's optimiser.

    Args:
        critic: the critic.
        kind: "sgd", momentum 0.9 and weight decay 5e-4 as for the student, as in SKD's released code; or "adam" with
            betas (0, 0.9), those of WGAN-GP's authors.
        lr: learning rate at the start; 4e-4 in SKD.
    """
    if kind == "sgd":
        return torch.optim.SGD(critic.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return torch.optim.Adam(critic.parameters(), lr=lr, betas=(0.0, 0.9))
