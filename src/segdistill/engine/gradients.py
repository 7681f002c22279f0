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
    others = [name for name in terms if name != reference]
    base = _gradient(terms[reference], parameters, scale) if reference in terms else None
    length = None if base is None else base.norm()
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    if length is not None:
        found[reference] = length, None
    for name in others:
        own = _gradient(terms[name], parameters, scale)
        norm = own.norm()
        found[name] = norm, None if base is None or length is None else (own @ base) / (norm * length)
    return {
        name: (norm.item() / scale, None if cosine is None or not cosine.isfinite() else cosine.item())
        for name in terms
        for norm, cosine in [found[name]]
    }


def _gradient(term: Tensor, parameters: Sequence[nn.Parameter], scale: float) -> Tensor:
    """The gradient of one term, (P,) in float32."""
    if not term.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), device=term.device)
    found = torch.autograd.grad(term * scale, list(parameters), retain_graph=True, allow_unused=True)
    pieces = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).float().reshape(-1) for g, p in pieces])
