"""Each loss as its formula is written: loops over images, pixels, channels and classes, nothing clever."""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.functional import resize_labels
from segdistill.texture import contourlet


def pixels(x: Tensor) -> Iterator[tuple[int, int, int]]:
    """Image, row and column of each pixel of (N,C,H,W)."""
    return itertools.product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3]))


def divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """KL(teacher‖student) of two vectors of logits."""
    p, q = ((z / tau).exp() / (z / tau).exp().sum() for z in (teacher, student))
    return sum(p[i] * (p[i] / q[i]).log() for i in range(len(p)))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / a.norm() / b.norm()


def pixel_kl(student, teacher, tau=1.0):
    terms = [divergence(teacher[n, :, y, x], student[n, :, y, x], tau) for n, y, x in pixels(student)]
    return tau**2 * torch.stack(terms).mean()


def channel_kl(student, teacher, tau=1.0):
    pairs = itertools.product(range(student.shape[0]), range(student.shape[1]))
    terms = [divergence(teacher[n, c].flatten(), student[n, c].flatten(), tau) for n, c in pairs]
    return tau**2 * torch.stack(terms).mean()


def soft_jaccard(student, target, valid, present):
    """Both (N,C,H,W) probabilities; valid (N,H,W); the classes that count."""
    distances = []
    for c in present:
        x, y = ([p[n, c, i, j] for n, i, j in pixels(p) if valid[n, i, j]] for p in (student, target))
        both, apart = sum(x) + sum(y), sum((a - b).abs() for a, b in zip(x, y, strict=True))
        distances.append(1 - (both - apart) / (both + apart))
    return sum(distances) / len(distances)


def masked_channel_kl(student, teacher, valid, tau=1.0):
    images = []
    for n in range(len(student)):
        if valid[n].any():
            s, t = student[n][:, valid[n]], teacher[n][:, valid[n]]
            images.append(sum(divergence(t[c], s[c], tau) for c in range(len(s))) / len(s))
    return tau**2 * sum(images) / len(images)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return cosine(a - sum(a) / len(a), b - sum(b) / len(b))


def inter_class_relation(student, teacher, tau=1.0):
    p, q = ((x / tau).softmax(1) for x in (student, teacher))
    terms = [1 - correlation(p[n, :, i, j], q[n, :, i, j]) for n, i, j in pixels(p)]
    return tau**2 * sum(terms) / len(terms)


def intra_class_relation(student, teacher, tau=1.0):
    p, q = ((x / tau).softmax(1) for x in (student, teacher))
    terms = [
        1 - correlation(*(torch.stack([x[n, c, i, j] for n, i, j in pixels(x)]) for x in (p, q)))
        for c in range(p.shape[1])
    ]
    return tau**2 * sum(terms) / len(terms)


def feature_mse(student, teacher):
    pairs = zip(student.flatten(), teacher.flatten(), strict=True)
    return sum((s - t) ** 2 for s, t in pairs) / student.numel()


def attention_transfer(student, teacher):
    total = 0.0
    for n in range(len(student)):
        maps = []
        for x in (student[n], teacher[n]):
            strength = [sum(v**2 for v in x[:, i, j]) / len(x) for _, i, j in pixels(x[None])]
            length = sum(v**2 for v in strength) ** 0.5
            maps.append([v / length for v in strength])
        total = total + sum((s - t) ** 2 for s, t in zip(*maps, strict=True))
    return total / student[:, 0].numel()


def local_similarity(student, teacher, kind="cosine"):
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    squares = []
    for n, y, x in pixels(student[:, :, 1:-1, 1:-1]):
        differences = []
        for down, right in around:
            values = []
            for f in (student[n], teacher[n]):
                p, q = f[:, y + 1, x + 1], f[:, y + 1 + down, x + 1 + right]
                values.append(cosine(p, q) if kind == "cosine" else (p - q).square().sum())
            differences.append(values[0] - values[1])
        squares += [d**2 for d in differences] if kind == "cosine" else [sum(differences) ** 2]
    return sum(squares) / len(squares)


def pairwise_similarity(student, teacher):
    total, nodes = 0.0, student[0, 0].numel()
    for n, i, j in itertools.product(range(len(student)), range(nodes), range(nodes)):
        s, t = student[n].flatten(1), teacher[n].flatten(1)
        total = total + (cosine(s[:, i], s[:, j]) - cosine(t[:, i], t[:, j])) ** 2
    return total / (len(student) * nodes**2)


def intra_class_variation(student, teacher, labels):
    labels = resize_labels(labels, student.shape[2:])
    total = 0.0
    for n, y, x in pixels(student):
        if labels[n, y, x] != 255:
            member = labels[n] == labels[n, y, x]
            own, other = (cosine(f[n, :, y, x], f[n, :, member].mean(1)) for f in (student, teacher))
            total = total + (own - other) ** 2
    return total / student[:, 0].numel()


def cross_image_similarity(student, teacher, tau=0.1):
    total, n = 0.0, len(student)
    for i, j in itertools.product(range(n), repeat=2):
        sides = []
        for x in (student, teacher):
            a, b = (F.normalize(x[k], dim=0).flatten(1) for k in (i, j))
            sides.append(a.T @ b)
        total = total + torch.stack([divergence(t, s, tau) for s, t in zip(*sides, strict=True)]).mean()
    return total / n**2


def class_prototypes(features, labels, num_classes):
    labels = resize_labels(labels, features.shape[2:])
    result = []
    for c in range(num_classes):
        own = [features[n, :, y, x] for n, y, x in pixels(features) if labels[n, y, x] == c]
        result.append(torch.stack(own).mean(0) if own else features.new_zeros(features.shape[1]))
    return torch.stack(result)


def prototype_triplet(student, teacher, present, margin=1.0):
    classes = present.nonzero()[:, 0].tolist()
    terms = [
        F.relu((student[i] - teacher[i]).norm() - (student[i] - teacher[j]).norm() + margin)
        for i, j in itertools.permutations(classes, 2)
    ]
    return torch.stack(terms).mean()


def augmented_channel_kl(student, teacher, variance, tau=1.0):
    """The bound as it is derived: log Σ_k exp of every pair of positions."""
    total = 0.0
    for n, c in itertools.product(range(student.shape[0]), range(student.shape[1])):
        z, v, p = student[n, c].flatten(), variance[n, c].flatten(), (teacher[n, c].flatten() / tau).softmax(0)
        for i in range(len(z)):
            pairs = [torch.exp((z[k] - z[i]) / tau + (v[k] + v[i]) / (2 * tau**2)) for k in range(len(z))]
            total = total + p[i] * (sum(pairs).log() + p[i].log())
    return tau**2 * total / (student.shape[0] * student.shape[1])


def augmented_pixel_kl(student, teacher, labels, weight, covariance, scale=1.0):
    """The bound as it is derived: log Σ_k exp of every pair of classes."""
    labels, total = resize_labels(labels, student.shape[2:]), 0.0
    matrices = covariance if covariance.dim() == 3 else torch.diag_embed(covariance)
    for n, y, x in pixels(student):
        z, p, label = student[n, :, y, x], teacher[n, :, y, x].softmax(0), int(labels[n, y, x])
        sigma = torch.zeros_like(matrices[0]) if label == 255 else scale * matrices[label]
        for c in range(len(z)):
            apart = [weight[k] - weight[c] for k in range(len(z))]
            pairs = [torch.exp(z[k] - z[c] + apart[k] @ sigma @ apart[k] / 2) for k in range(len(z))]
            total = total + p[c] * (sum(pairs).log() + p[c].log())
    return total / labels.numel()


def structural_texture(student, teacher, levels):
    own, other = contourlet(student, levels), contourlet(teacher, levels)
    pairs = [pair for scales in zip(own.bands, other.bands, strict=True) for pair in zip(*scales, strict=True)]
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
