"""Taps: the intermediate outputs of any network, by name, without touching its code."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from segdistill.functional import IGNORE, upcast

Taps = dict[str, Tensor]
"""What a network shows of one batch: tap name → tensor. Standard names: `low1 low2 features logits`, besides `output`
(the logits that the network returns, at its own resolution), `image` (its input) and `weight` ((C,A), of its final
1×1 classifier). `undropped` is `features` before the dropout that gives them; a network without one has no such tap."""

GIVEN = ("output", "image", "weight")
"""Taps that need no hook."""

UNDROPPED = "undropped"
"""The tap that is there only where a dropout gives `features`."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Layers that a network in training draws its noise with."""


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


def as_map(value: Tensor, size: tuple[int, int], prefix: int | None = None) -> Tensor | None:
    """A feature map (N,A,h,w) of what a layer gives for images of a size; None where it is no map of them.

    Tokens (N,L,A) lose their prefix (class and register tokens) and become a map; so do channels-last maps (N,h,w,A).

    Args:
        value: what the layer gives.
        size: (H,W) of the images that the network got.
        prefix: how many tokens come before those of the image, where that is known.

    >>> as_map(torch.zeros(1, 5 + 4 * 6, 8), (64, 96)).shape
    torch.Size([1, 8, 4, 6])
    """
    if value.dim() == 4:
        if _covers((value.shape[2], value.shape[3]), size, COMMON):
            return value
        if _covers((value.shape[1], value.shape[2]), size, COMMON):
            return value.permute(0, 3, 1, 2)
        return value if _covers((value.shape[2], value.shape[3]), size, range(1, 33)) else None
    if value.dim() != 3:
        return None
    count = value.shape[1]
    for before in range(PREFIX + 1) if prefix is None else (prefix,):
        for stride in STRIDES:
            h, w = -(-size[0] // stride), -(-size[1] // stride)
            if before + h * w == count:
                tokens = value[:, before:].transpose(1, 2)
                return tokens.reshape(len(value), -1, h, w)
    return None


COMMON = (1, 2, 4, 8, 16, 32)
"""Strides that decide between channels first and last; a channels-first map may have any up to the largest."""
PREFIX = 16
"""The most class and register tokens that are looked for before those of the image."""
STRIDES = (4, 8, 16, 32, 14, 7, 28, 12, 2, 64, *range(3, 64))
"""Strides of tokens, in the order in which they are tried."""


def _covers(shape: tuple[int, int], size: tuple[int, int], strides: Iterable[int]) -> bool:
    """Whether a map's (h,w) is that of the whole image at one of some strides, rounded up or down."""
    return min(shape) > 0 and any(
        all(side // stride <= n <= -(-side // stride) for side, n in zip(size, shape, strict=True))
        for stride in strides
    )


class ClassMap:
    """How a teacher's classes become a student's.

    The logit of a class that several of the teacher's go to is the logarithm of the sum of their exponentials, so that
    its probability is the sum of theirs. The teacher's classes that go nowhere are left out, as if it had never known
    them. Student's classes that none goes to are not compared: they are learned from labels alone.

    Args:
        sources: for each of the student's classes, numbers of the teacher's that go there; none for an unknown one.
        count: how many classes the teacher has, where that is known.

    Raises:
        ValueError: if fewer than two of the student's classes have a counterpart, or a teacher's class goes to two.
    """

    def __init__(self, sources: Sequence[Sequence[int]], count: int | None = None):
        self.count = count
        self.known = [number for number, those in enumerate(sources) if those]
        """Numbers of the student's classes that are compared."""
        self.sources = [list(sources[number]) for number in self.known]
        self.complete = len(self.known) == len(sources)
        if len(self.known) < 2:
            raise ValueError(f"class_map: {len(self.known)} of {len(sources)} classes have a counterpart, needs 2")
        every = [number for those in self.sources for number in those]
        twice = next((number for number in every if every.count(number) > 1), None)
        if twice is not None:
            raise ValueError(f"class_map: the teacher's class {twice} goes to more than one class; it can go to one")

    def merge(self, logits: Tensor) -> Tensor:
        """The teacher's logits (N,T,H,W) as logits of the compared classes (N,C,H,W).

        Raises:
            ValueError: if they are not those of as many classes as the map is of.
        """
        least = 1 + max(number for those in self.sources for number in those)
        if logits.shape[1] != (self.count or logits.shape[1]) or logits.shape[1] < least:
            raise ValueError(
                f"class_map is of {self.count or f'at least {least}'} classes, the network gives {logits.shape[1]}; "
                "list them all as classes, or say how many as num_classes"
            )
        return torch.stack([logits[:, those].logsumexp(1) for those in self.sources], dim=1)

    def select(self, student: Taps) -> Taps:
        """The student's taps with the compared classes alone in `logits` and `weight`."""
        kept = dict(student)
        if "logits" in kept:
            kept["logits"] = kept["logits"][:, self.known]
        if "weight" in kept:
            kept["weight"] = kept["weight"][self.known]
        return kept

    def relabel(self, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
        """Labels as numbers among the compared classes; the others are ignored.

        Args:
            target: (N,H,W) int64.
            ignore_index: label of ignored pixels.
        """
        table = torch.full((256,), ignore_index, dtype=target.dtype, device=target.device)
        table[self.known] = torch.arange(len(self.known), dtype=target.dtype, device=target.device)
        return table[target.clamp(0, 255)]


class Tapped(nn.Module):
    """Any network with named outputs: images (N,3,H,W) → {"logits": …, "low1": …, "low2": …, "features": …}.

    Hooks live only during the call, so that copies, pickles and exports of the network know nothing of them. A tensor
    that a later layer overwrites in place is refused. Of a layer that gives a tuple, the first tensor is meant; tokens
    (N,L,A) and channels-last maps become (N,A,h,w).

    Args:
        network: the network. What it needs of normalisation it does itself.
        taps: tap name → dotted path of a submodule, whose output is meant, or `PATH:input` for what enters it.
            Default: the network's own attribute `taps`.
        classifier: dotted path of the final 1×1 classifier; makes the tap `weight`. Default: the network's own
            attribute `classifier_path`, if it has one.
        class_map: of a teacher with other classes than the student.

    Raises:
        ValueError: if a path names no submodule.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Mapping[str, str] | None = None,
        classifier: str | None = None,
        class_map: ClassMap | None = None,
    ):
        super().__init__()
        self.network = network
        self.class_map = class_map
        self.paths = dict(getattr(network, "taps", {}) if taps is None else taps)
        self.classifier = classifier if classifier is not None else getattr(network, "classifier_path", None)
        modules = dict(network.named_modules())
        for name, path in {**self.paths, **({"classifier": self.classifier} if self.classifier else {})}.items():
            if path.removesuffix(":input") not in modules:
                near = difflib.get_close_matches(path.removesuffix(":input"), modules, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"tap {name}: no submodule {path!r}{hint}; `segdistill layers MODEL` lists them")

    def forward(self, images: Tensor, names: Iterable[str] | None = None) -> Taps:
        """Run the network once and collect its taps.

        Args:
            images: (N,3,H,W).
            names: the taps that are wanted (default: all that run); `logits` and `output` always come. `undropped`
                comes if it is named here and a dropout gives the network's `features`.

        Raises:
            ValueError: on a tap that does not exist, gives no tensor, or is overwritten in place.
        """
        wanted = {*(self.paths if names is None else names), "logits"} - set(GIVEN)
        undropped = UNDROPPED in wanted - set(self.paths)
        if undropped:
            wanted = wanted - {UNDROPPED} | {"features"}
        unknown = wanted - {*self.paths, "logits"}
        if unknown:
            name = sorted(unknown)[0]
            raise ValueError(
                f"no tap {name!r}: {type(self.network).__name__} has {sorted({*self.paths, 'logits'})}; write taps: "
                f"{{{name}: PATH}} in its section, `segdistill layers MODEL` shows paths"
            )
        caught: dict[str, tuple[Tensor, int]] = {}
        handles = [self._hook(name, self.paths[name], caught) for name in sorted(wanted & set(self.paths))]
        dropouts: list[tuple[nn.Module, Tensor, Tensor]] = []
        if undropped:
            handles += self._watch_dropouts(dropouts)
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
            if _version(tensor) != version:
                raise ValueError(f"tap {name}: {self.paths[name]!r} is overwritten in place; tap its parent instead")
            taps[name] = self._map(name, tensor, images)
        taps.setdefault("logits", output)
        for dropout, before, after in dropouts:
            if after is caught["features"][0]:
                if dropout.training and dropout.inplace:
                    raise ValueError(
                        f"tap {UNDROPPED}: the dropout before `features` works in place; set inplace=False"
                    )
                taps[UNDROPPED] = self._map("features", before, images)
        if self.weight is not None:
            taps["weight"] = self.weight
        if self.class_map is not None:
            taps |= {name: self.class_map.merge(upcast(taps[name])) for name in ("logits", "output")}
        return taps

    def _map(self, name: str, value: Tensor, images: Tensor) -> Tensor:
        """What a layer gives, as a map where it is one."""
        inner = getattr(self.network, "input_size", None)
        size = (images.shape[-2], images.shape[-1])
        path, prefix = self.paths[name].removesuffix(":input"), None
        while prefix is None and path:
            prefix = getattr(self.network.get_submodule(path), "num_prefix_tokens", None)
            path = path.rpartition(".")[0]
        found = as_map(value, size if inner is None else inner(*size), prefix)
        if found is None and value.dim() != 4:
            raise ValueError(f"tap {name}: {self.paths[name]!r} gives {tuple(value.shape)}, no map of the image")
        return value if found is None else found

    @property
    def weight(self) -> Tensor | None:
        """(C,A) of the final classifier; None where it is not known, or classes are merged, which have none."""
        if self.classifier is None or self.class_map is not None:
            return None
        weight = self.network.get_submodule(self.classifier).weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)

    @property
    def align_corners(self) -> bool:
        """Whether the network wants its logits resized with aligned corners."""
        return aligned(self.network)

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
            if isinstance(value, tuple | list) and value:
                value = value[0]
            if not isinstance(value, Tensor):
                raise ValueError(f"tap {name}: {path!r} gives a {type(value).__name__}, not a tensor; tap inside it")
            caught[name] = (value, _version(value))

        module = self.network.get_submodule(path.removesuffix(":input"))
        if path.endswith(":input"):
            return module.register_forward_pre_hook(lambda _module, args: keep(args[0]))
        return module.register_forward_hook(lambda _module, _args, output: keep(output))

    def _watch_dropouts(self, seen: list[tuple[nn.Module, Tensor, Tensor]]) -> Iterator[RemovableHandle]:
        """Note what enters and leaves each dropout."""
        for module in self.network.modules():
            if isinstance(module, DROPOUTS):
                yield module.register_forward_hook(lambda called, args, after: seen.append((called, args[0], after)))


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; under `torch.inference_mode`, where nobody counts, always the same."""
    return 0 if tensor.is_inference() else tensor._version


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


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize (N,C,h,w) bilinearly to (N,C,*size); the same tensor where nothing is to do."""
    if has_size(x, size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def resize_logits(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize a network's logits to its images' resolution, in float32 at least.

    Half precision would round each of the many new pixels once more, which the loss then sees.

    Args:
        logits: (N,C,h,w).
        size: (H,W).
        align_corners: as the network wants it.
    """
    return logits if has_size(logits, size) else resize(upcast(logits), size, align_corners)


def has_size(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether a map has a size; of one that is exported for any size, whether it has it whatever the image's size is.

    Args:
        x: (N,C,h,w).
        size: (H,W).
    """
    if not torch.compiler.is_exporting():
        return x.shape[-2:] == torch.Size(size)
    # Asking whether two symbolic sizes are equal would fix the answer to that of the example.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(have == want) for have, want in zip(x.shape[-2:], size, strict=True))


def aligned(network: nn.Module) -> bool:
    """Whether a network wants its logits resized with aligned corners: its attribute `align_corners`, else not."""
    return bool(getattr(network, "align_corners", False))
