"""Taps: the intermediate outputs of any network, by name, without touching its code."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.functional import upcast

Taps = dict[str, Tensor]
"""What a network shows of one batch: tap name → tensor. Standard names: `low1 low2 features logits`, besides `output`
(the logits that the network returns, at its own resolution), `image` (its input) and `weight` ((C,A), of its final
1×1 classifier)."""

GIVEN = ("output", "image", "weight")
"""Taps that need no hook."""


def as_logits(output: Any) -> Tensor:
    """The logits in whatever a segmentation network returns.

    Args:
        output: a tensor, or a mapping, model output, tuple or list that holds one (`logits`, `out`, else the first).

    Raises:
        ValueError: if nothing in there is an (N,C,H,W) tensor.
    """
    if isinstance(output, Tensor):
        if output.dim() != 4:
            raise ValueError(f"expected logits (N,C,H,W), got {tuple(output.shape)}; tap the layer that gives the map")
        return output
    if isinstance(output, Mapping):
        for key in ("logits", "out"):
            if key in output:
                return as_logits(output[key])
        raise ValueError(f"no 'logits' or 'out' among the network's outputs {sorted(output)}; tap the layer by path")
    if isinstance(output, tuple | list) and output:
        return as_logits(output[0])
    raise ValueError(f"cannot find logits in a {type(output).__name__}; tap the layer that gives the map by its path")


class Tapped(nn.Module):
    """Any network with named outputs: images (N,3,H,W) → {"logits": …, "low1": …, "low2": …, "features": …}.

    Hooks live only during the call, so that copies, pickles and exports of the network know nothing of them. A tensor
    that a later layer overwrites in place is refused.

    Args:
        network: the network. What it needs of normalisation it does itself.
        taps: tap name → dotted path of a submodule, whose output is meant, or `PATH:input` for what enters it.
            Default: the network's own attribute `taps`.
        classifier: dotted path of the final 1×1 classifier; makes the tap `weight`. Default: the network's own
            attribute `classifier`, if it has one.

    Raises:
        ValueError: if a path names no submodule.
    """

    def __init__(self, network: nn.Module, taps: Mapping[str, str] | None = None, classifier: str | None = None):
        super().__init__()
        self.network = network
        self.paths = dict(getattr(network, "taps", {}) if taps is None else taps)
        self.classifier = classifier if classifier is not None else getattr(network, "classifier_path", None)
        modules = dict(network.named_modules())
        for name, path in {**self.paths, **({"classifier": self.classifier} if self.classifier else {})}.items():
            if path.removesuffix(":input") not in modules:
                raise ValueError(f"tap {name}: no submodule {path!r}; `segdistill layers` lists them")

    def forward(self, images: Tensor, names: Iterable[str] | None = None) -> Taps:
        """Run the network once and collect its taps.

        Args:
            images: (N,3,H,W).
            names: the taps that are wanted (default: all that run); `logits` and `output` always come.

        Raises:
            ValueError: on a tap that does not exist, gives no tensor, or is overwritten in place.
        """
        wanted = {*(self.paths if names is None else names), "logits"} - set(GIVEN)
        unknown = wanted - {*self.paths, "logits"}
        if unknown:
            raise ValueError(f"no tap {sorted(unknown)[0]!r}: this network has {sorted({*self.paths, 'logits'})}")
        caught: dict[str, tuple[Tensor, int]] = {}
        handles = [self._hook(name, self.paths[name], caught) for name in sorted(wanted & set(self.paths))]
        try:
            output = as_logits(self.network(images))
        finally:
            for handle in handles:
                handle.remove()
        taps: Taps = {"image": images, "output": output}
        for name in sorted(wanted & set(self.paths)):
            if name not in caught:
                if names is None:
                    continue
                raise ValueError(f"tap {name}: {self.paths[name]!r} did not run in the forward pass")
            tensor, version = caught[name]
            if tensor._version != version:
                raise ValueError(f"tap {name}: {self.paths[name]!r} is overwritten in place; tap its parent instead")
            taps[name] = tensor
        taps.setdefault("logits", output)
        if self.classifier is not None:
            weight = self.network.get_submodule(self.classifier).weight
            assert isinstance(weight, Tensor)
            taps["weight"] = weight.flatten(1)
        return taps

    def compile_between_taps(self) -> None:
        """Compile the network's largest parts that hold no tap.

        A compiled module does not see hooks that are set later, so the tapped modules themselves stay as they are.
        """
        tapped = [path.removesuffix(":input") for path in self.paths.values()]

        def visit(module: nn.Module, prefix: str) -> None:
            for name, child in module.named_children():
                path = prefix + name
                if any(tap == path or tap.startswith(f"{path}.") for tap in tapped):
                    visit(child, f"{path}.")
                elif any(True for _ in child.parameters()):
                    child.compile()

        visit(self.network, "")

    def _hook(self, name: str, path: str, caught: dict[str, tuple[Tensor, int]]) -> Any:
        def keep(value: Any) -> None:
            if not isinstance(value, Tensor):
                raise ValueError(f"tap {name}: {path!r} gives a {type(value).__name__}, not a tensor; tap inside it")
            caught[name] = (value, value._version)

        module = self.network.get_submodule(path.removesuffix(":input"))
        if path.endswith(":input"):
            return module.register_forward_pre_hook(lambda _module, args: keep(args[0]))
        return module.register_forward_hook(lambda _module, _args, output: keep(output))


def match_maps(student: Taps, teacher: Taps) -> tuple[Taps, Taps]:
    """Bring both sides' maps of one name to one H×W: the smaller is resized bilinearly to the larger.

    Args:
        student: taps of the student.
        teacher: taps of the teacher.

    Returns:
        The same taps, upcast to float32 at least and matched; `image` and `weight` are not resized, `output` is left
        out (`logits` is what methods compare).
    """
    student, teacher = ({k: upcast(t) for k, t in taps.items() if k != "output"} for taps in (student, teacher))
    for name in (student.keys() & teacher.keys()) - set(GIVEN):
        a, b = student[name], teacher[name]
        if a.dim() == b.dim() == 4 and a.shape[-2:] != b.shape[-2:]:
            if a.shape[-2] * a.shape[-1] < b.shape[-2] * b.shape[-1]:
                student[name] = resize(a, (b.shape[-2], b.shape[-1]))
            else:
                teacher[name] = resize(b, (a.shape[-2], a.shape[-1]))
    return student, teacher


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N,C,h,w) bilinearly to (N,C,*size), corners not aligned; the same tensor where nothing is to do."""
    return x if x.shape[-2:] == torch.Size(size) else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
