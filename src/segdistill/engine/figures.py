"""The numbers of a step on their way from the device, and whether they are finite.

A GPU computes behind the program that feeds it. To ask it for a number is to wait until it has done all that it was
given, and to let it run dry meanwhile. So the numbers of a step are sent to the host when the step is given, and looked
at a step later, or when they are wanted: for a record, a validation, a checkpoint. Until then nothing may go wrong: the
optimiser steps on the condition, which the device itself knows, that all of them are finite. A CPU has computed what it
was given, and its numbers are looked at before the optimiser steps.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from segdistill.engine.faults import not_finite
from segdistill.engine.runtime import Runtime


def computes_behind(device: torch.device) -> bool:
    """Whether a device computes after the program that feeds it, and tells without waiting when a number is there.

    Args:
        device: of a run.
    """
    return device.type == "cuda"


class Figures:
    """A step's terms, and the norms of its gradients.

    Args:
        history: of each micro-batch, name → term, detached.
        step: how many steps were done before this one.
        run: device, processes.
        folder: of the run, for the message.
    """

    def __init__(self, history: Sequence[Mapping[str, Tensor]], step: int, run: Runtime, folder: Path):
        self.step, self.run, self.folder = step, run, folder
        self.behind = computes_behind(run.device)
        self.names = list(history[0])
        self.means = torch.stack([torch.stack([terms[name] for name in self.names]) for terms in history]).mean(0)
        self.what = [f"term {name}" for name in self.names]
        self.fatal = [True] * len(self.names)
        self.norms: list[Tensor] = []
        self.sent: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None
        self.numbers: list[float] | None = None

    def add(self, whose: str, norm: Tensor, *, fatal: bool = True) -> None:
        """Add a gradient's norm.

        Args:
            whose: for the message.
            norm: a scalar.
            fatal: whether one that is not finite ends the run.

        Raises:
            TrainingStopped: at once where the device does not compute behind, if one of them is not finite.
        """
        self.norms.append(norm.detach().float())
        self.what.append(whose)
        self.fatal.append(fatal)
        self.numbers = None
        if not self.behind:
            self.read()

    @property
    def finite(self) -> Tensor:
        """Whether the terms, and the norms that were added so far and are fatal, are finite: a bool on the device."""
        norms = [norm.view(1) for norm, fatal in zip(self.norms, self.fatal[len(self.names) :], strict=True) if fatal]
        return torch.cat([self.means, *norms]).isfinite().all()

    def send(self) -> None:
        """Start the numbers on their way to the host, and with them whether any process was asked to stop."""
        if self.behind:
            stop = torch.full((1,), float(bool(self.run.stopped)), device=self.run.device)
            values = torch.cat([self.means, torch.stack(self.norms), self.run.sum(stop)])
            self.sent = values.to("cpu", non_blocking=True)
            if values.is_cuda:
                self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self.arrived.record()

    def read(self) -> list[float]:
        """The numbers: terms, norms, and if they were sent, how many processes were asked to stop.

        Raises:
            TrainingStopped: if one is not finite.
        """
        if self.numbers is None:
            if self.arrived is not None:
                self.arrived.synchronize()
            if self.sent is None:
                self.numbers = [*self.means.tolist(), *map(float, self.norms)]
            else:
                self.numbers = self.sent.tolist()
        for what, value, fatal in zip(self.what, self.numbers, self.fatal, strict=False):
            if fatal and not math.isfinite(value):
                raise not_finite(what, value, self.step, self.folder)
        return self.numbers

    @property
    def terms(self) -> dict[str, float]:
        """Each term's mean over the micro-batches."""
        return dict(zip(self.names, self.read(), strict=False))

    @property
    def norm(self) -> float:
        """Of the first gradient, the student's, before it was clipped."""
        return self.read()[len(self.names)]


class Watch:
    """Looks at the figures of all steps, in their order."""

    def __init__(self) -> None:
        self.waiting: Figures | None = None
        self.seen: Figures | None = None

    def look(self, figures: Figures, *, now: bool) -> None:
        """Look at the step before, and at this one if its numbers are there or wanted.

        Args:
            figures: of the step that was just given to the device.
            now: whether they are wanted.

        Raises:
            TrainingStopped: if one is not finite.
        """
        figures.send()
        before, self.waiting = self.waiting, figures
        if before is not None:
            before.read()
        if now or not figures.behind:
            figures.read()
            self.waiting = None
        self.seen = before if self.waiting is not None else figures

    def stopping(self, run: Runtime) -> bool:
        """Whether a process was asked to stop; all of them come to the same, and to that the figures they looked at.

        Args:
            run: of this process.
        """
        if run.world == 1 or self.seen is None or self.seen.sent is None:
            behind = self.waiting is not None and run.world > 1  # the first step's flag is still on its way
            return False if behind else run.any(bool(run.stopped))
        return self.seen.read()[-1] > 0


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of an optimiser if a flag is up, which is known to its device alone.

    An optimiser that is fused takes no step otherwise; any other one takes that of a gradient of 0.

    Args:
        good: the flag, a scalar bool on the device.
        optimizer: with gradients.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # as torch's own loss scaler tells it
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
        return
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        parameter.grad = torch.where(good, parameter.grad, torch.zeros_like(parameter.grad))
    optimizer.step()
