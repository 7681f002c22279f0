"""How strongly each term pulls at the student, and whether it pulls where cross-entropy does."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def term_gradients(
    terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], *, reference: str = "ce", scale: float = 1.0
) -> dict[str, tuple[float, float | None]]:
    """Each term's own gradient in the student's parameters: its Euclidean norm, and its cosine with another term's.

    The graph is kept, and no `.grad` is touched; each term costs one backward pass.

    Args:
        terms: scalars, with the graph of one forward pass; one without a graph has norm 0.
        parameters: those whose gradients are taken, as one long vector.
        reference: the term that the others are compared with.
        scale: by which terms are multiplied during the backward pass (of a loss scaler); the norm is without it.

    Returns:
        Term → (norm, cosine); the cosine is None for the reference itself, and where a gradient is 0.

    >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> term_gradients({"ce": weight.sum(), "kd": weight[0] * 2}, [weight])["kd"]
    (2.0, 0.7071067690849304)
    """
    order = sorted(terms, key=lambda name: name != reference)  # the reference first
    base: Gradients | None = None
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name in order:
        own = _gradients(terms[name], parameters, scale)
        norm, cosine = _dot(own, own).sqrt(), None
        if name == reference:
            base, length = own, norm
        elif base is not None:
            cosine = _dot(own, base) / (norm * length)
        found[name] = norm, cosine
    return {
        name: (norm.item() / scale, None if cosine is None or not cosine.isfinite() else cosine.item())
        for name in terms
        for norm, cosine in [found[name]]
    }


Gradients = list[Tensor | None]


def _gradients(term: Tensor, parameters: Sequence[nn.Parameter], scale: float) -> Gradients:
    if not term.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(term * scale, list(parameters), retain_graph=True, allow_unused=True))


def _dot(a: Gradients, b: Gradients) -> Tensor:
    """The inner product of two gradients, tensor by tensor, so that nothing of their size is made."""
    products = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack(products).sum() if products else torch.zeros(())
