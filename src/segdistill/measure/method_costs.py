"""What a method adds to a student's training: layers, buffers and operations, part by part (SSTKD's table 3)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segdistill.engine.build import tap
from segdistill.methods import Composite, build_method, method_class, resolve_methods
from segdistill.taps import Tapped, Taps, match_maps
from segdistill.texture import analysis_operations

COUNTER, FORMULA = "flop counter", "analytical"


def method_costs(
    method: str, student: nn.Module, teacher: nn.Module, size: tuple[int, int] = (512, 1024)
) -> list[dict[str, Any]]:
    """Parameters, and operations of the forward pass on one image, of what a method computes beside the networks.

    The method itself is run, on random maps of the shapes that the networks give, and PyTorch's flop counter counts
    its convolutions and matrix products; elementwise work (softmax, differences, norms) it does not count, nor do we.
    A multiply-add is two operations. The networks' own passes are not in these figures.

    Args:
        method: its name.
        student: images → logits, with taps.
        teacher: likewise.
        size: (H,W) of the image.

    Returns:
        Rows of `part`, `trained` (parameters), `fixed` (values of buffers), `flops`, `counted` (how).

    Raises:
        ValueError: on an unknown method, or networks without the taps that it reads.
    """
    (options,) = resolve_methods(method)
    full = build_method(options)
    if not full.teacher_taps():
        raise ValueError(f"method {method} reads nothing of a teacher: it adds nothing to the student's own step")
    own, other = (shapes(network, size, full.student_taps()) for network in (student, teacher))
    own, other = match_maps(own, other)
    rows = _parts(method, options, own, other)
    if not rows:
        built, flops, _ = _run(options, own, other)
        rows.append(_row(f"{method}: layers and loss", built, flops, COUNTER))
    full.adapt(own, other)
    return rows + _formulas(full, own, other) + _critic(full, own, other)


def shapes(network: nn.Module, size: tuple[int, int], names: set[str]) -> Taps:
    """Random tensors of the shapes that a network's taps have; nothing is computed.

    Args:
        network: with taps.
        size: (H,W) of the image.
        names: of the taps.
    """
    known = tap(network)
    tapped = Tapped(copy.deepcopy(network).to("meta").eval(), known.paths, known.classifier)
    with torch.no_grad():
        taps = tapped(torch.empty(1, 3, *size, device="meta"), names)
    return {name: torch.rand(seen.shape) for name, seen in taps.items()}


def _run(options: dict[str, Any], student: Taps, teacher: Taps) -> tuple[Composite, int, int]:
    """The method, the operations of its terms, and those of them that its layer `project` has."""
    method = build_method(options)
    method.adapt(student, teacher)
    method.train()
    height, width = student["image"].shape[2:]
    target = torch.randint(0, student["logits"].shape[1], (1, height, width))
    mapping = {torch.ops.segdistill.contourlet_analysis: _contourlet}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        method(student, teacher, target, 0.5)
    modules = counter.get_flop_counts()
    projected = sum(sum(counts.values()) for name, counts in modules.items() if name.endswith(".project"))
    return method, counter.get_total_flops(), projected


def _contourlet(shape: Any, levels: int, *_: Any, **__: Any) -> int:
    height, width, *batch = shape
    return 2 * analysis_operations(height, width, levels, dense=True) * int(torch.Size(batch).numel())


def _row(part: str, module: nn.Module | None, flops: int, counted: str) -> dict[str, Any]:
    trained = fixed = 0
    if module is not None:
        trained = sum(p.numel() for p in module.parameters())
        fixed = sum(b.numel() for b in module.buffers())
    return {"part": part, "trained": trained, "fixed": fixed, "flops": flops, "counted": counted}


def _parts(name: str, options: dict[str, Any], student: Taps, teacher: Taps) -> list[dict[str, Any]]:
    """The parts that a method tells apart, each from a run of its own; its projection once."""
    rows: list[dict[str, Any]] = []
    for title, only, layers in method_class(name).parts:
        built, flops, projected = _run({**options, **only}, student, teacher)
        inner: Any = built.methods[name]
        if projected and not rows:
            rows.append(_row("projection", inner.project, projected, COUNTER))
        module = None if layers is None else getattr(inner, layers)
        rows.append(_row(title, module, flops - projected, COUNTER))
    return rows


def _formulas(method: Composite, student: Taps, teacher: Taps) -> list[dict[str, Any]]:
    found = [one.formulas(student, teacher) for _, one in method.each()]
    return [_row(part, None, round(flops), FORMULA) for parts in found for part, flops in parts.items()]


def _critic(method: Composite, student: Taps, teacher: Taps) -> list[dict[str, Any]]:
    critic = method.make_critic()
    if critic is None:
        return []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.adversarial_loss(critic, student, teacher)
    return [_row("critic, one map", critic, counter.get_total_flops(), COUNTER)]
