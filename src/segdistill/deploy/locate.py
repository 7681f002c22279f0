"""Where a file begins to differ from its student: the first module whose output is another."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.deploy.formats import Runner
from segdistill.deploy.graph import Interface, as_float, as_input


@dataclass(frozen=True)
class Place:
    """A module whose output differs.

    Args:
        path: of the module.
        kind: its class.
        difference: of its output, relative to the largest value; infinite where the shape is another.
    """

    path: str
    kind: str
    difference: float

    def __str__(self) -> str:
        return f"the difference begins at {self.path} ({self.kind}), {self.difference:.2g} of its largest value"


class Outspoken(nn.Module):
    """A network that gives the output of every module in it, in the order in which they are done.

    A module is done after those in it, so that the first one that differs is an innermost one.

    Args:
        network: any.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.paths: list[str] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All outputs that are maps, each once; `paths` says of which modules.

        Args:
            image: (N,3,H,W), of either kind.
        """
        said: list[tuple[str, Tensor]] = []

        def listen(path: str) -> Callable[[Any, Any, Any], None]:
            def keep(_module: Any, _args: Any, output: Any) -> None:
                value = output[0] if isinstance(output, tuple | list) and output else output
                if isinstance(value, Tensor) and value.is_floating_point() and all(value is not v for _, v in said):
                    said.append((path, value))

            return keep

        hooks = [m.register_forward_hook(listen(path)) for path, m in self.network.named_modules() if path]
        try:
            self.network(as_float(image))
        finally:
            for hook in hooks:
                hook.remove()
        self.paths = [path for path, _ in said]
        return tuple(value for _, value in said)


def first_difference(
    network: nn.Module,
    interface: Interface,
    images: Tensor,
    tolerance: float,
    open_module: Callable[[nn.Module, list[str]], Runner],
) -> Place | None:
    """The first module whose output in a file differs from that in the student.

    Args:
        network: the student.
        interface: of the file.
        images: (N,3,H,W) uint8, on which they differ.
        tolerance: the largest difference that is none, relative to an output's largest value.
        open_module: makes a module with outputs of these names run as the file does.

    Returns:
        None where no module differs, as where what the network does between its modules makes the difference, or where
        such a graph cannot be made.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    own = Outspoken(network)
    with torch.no_grad():
        wanted = own(as_float(images))
    names = [f"output{number}" for number in range(len(wanted))]
    try:
        run = open_module(Outspoken(copy.deepcopy(network)), names)
        found = run(as_input(images, interface))
    except Exception:  # the file itself was made; this is only an explanation of it, and must not hide it
        return None
    for path, name, value in zip(own.paths, names, wanted, strict=True):
        difference = _difference(torch.from_numpy(np.array(found[name], np.float32)), value)
        if not difference <= tolerance:
            return Place(path, type(network.get_submodule(path)).__name__, difference)
    return None


def _difference(theirs: Tensor, own: Tensor) -> float:
    if theirs.shape != own.shape:
        return float("inf")
    return float((theirs - own).abs().max() / own.abs().max().clamp(min=1e-12))
