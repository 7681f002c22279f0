"""Groups of parameters: which learning rate each part gets, and which parameters are without weight decay."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from segdistill._options import closest
from segdistill.engine.train_config import TrainConfig
from segdistill.models.external.wrapper import External

BACKBONE, HEAD, METHOD = "backbone", "head", "method"
"""Parts that have a name in every network: what gives the features, all the rest of it, and the method's layers."""

EMBEDDINGS = (
    "pos_embed", "position_embeddings", "absolute_pos_embed", "rel_pos_h", "rel_pos_w", "relative_position_bias_table",
    "cls_token", "reg_token", "dist_token", "mask_token",
)  # fmt: skip
"""Parameters of transformers that are no weights of a layer; their authors leave weight decay out of them."""

CONTAINERS = (nn.Sequential, nn.ModuleList)


def parameter_groups(distiller: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """The groups that an optimiser is built from.

    Args:
        distiller: student and method; parameters that need no gradient are left out.
        train: section of the configuration. With none of `lr_factors`, `layer_decay` and `norm_decay: false` there is
            one group.

    Returns:
        Of each group `params`, and where it differs from the others, `lr` and `weight_decay`.

    Raises:
        ValueError: if `train.lr_factors` names a part that is not there, or `train.layer_decay` finds no layers.
    """
    parameters = {name: p for name, p in distiller.named_parameters() if p.requires_grad}
    if not train.lr_factors and train.layer_decay is None and train.norm_decay:
        return [{"params": list(parameters.values())}]
    network: nn.Module = distiller.student.network  # type: ignore[union-attr, assignment]
    rates = _rates(distiller, network, train.lr_factors)
    if train.layer_decay is not None:
        for name, factor in layer_factors(network, train.layer_decay).items():
            rates[f"student.network.{name}"] *= factor
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decays = train.norm_decay or not (parameter.dim() < 2 or name.rpartition(".")[2] in EMBEDDINGS)
        group = groups.setdefault((rates[name], decays), {"params": [], "lr": train.lr * rates[name]})
        group["params"].append(parameter)
        if not decays:
            group["weight_decay"] = 0.0
    return list(groups.values())


def _rates(distiller: nn.Module, network: nn.Module, factors: Mapping[str, float]) -> dict[str, float]:
    """Parameter → factor of the part that it belongs to; the most exact of several decides."""
    backbone = backbone_path(network)
    inner = "network." if isinstance(network, External) else ""  # a wrapper's own name says nothing
    paths = {
        name: name.removeprefix("student.network.").removeprefix(inner) for name, _ in distiller.named_parameters()
    }

    def belongs(name: str, part: str) -> bool:
        if backbone is not None and part in (BACKBONE, HEAD) and name.startswith("student.network."):
            return name.startswith(f"student.network.{backbone}.") == (part == BACKBONE)
        part = part.removeprefix(inner)
        return fnmatchcase(paths[name], part) or fnmatchcase(paths[name], f"{part}.*")

    rates = dict.fromkeys(paths, 1.0)
    for part in sorted(factors, key=lambda part: (part not in (BACKBONE, HEAD), len(part), part)):
        found = [name for name in paths if belongs(name, part)]
        if not found and part != METHOD:  # a method may have no layers
            known = [] if backbone is None else [BACKBONE, HEAD]
            known += [name for name, child in _inner(network).named_children() if any(True for _ in child.parameters())]
            known = [*dict.fromkeys(known), METHOD]
            raise ValueError(
                f"train.lr_factors: no part {part!r} in {_kind(network)}{closest(part, known)}; there are "
                f"{', '.join(known)}, and paths such as `segdistill layers` prints them"
            )
        rates |= dict.fromkeys(found, factors[part])
    return rates


def backbone_path(network: nn.Module) -> str | None:
    """Path of what gives a network its features, below which pretrained weights lie; None where it cannot be told.

    That is its submodule `backbone` or `encoder`, as in the families here, in torchvision and in
    segmentation_models_pytorch, and in transformers what a network names its base model.

    Args:
        network: any.
    """
    inner = _inner(network)
    children = dict(inner.named_children())
    base = getattr(inner, "base_model_prefix", None)
    found = next((name for name in (BACKBONE, "encoder", base) if name in children), None)
    if found is None:
        return None
    if f"{found}.pixel_level_module.encoder" in dict(inner.named_modules()):  # of networks that give queries
        found += ".pixel_level_module.encoder"
    return f"network.{found}" if inner is not network else found


def layer_factors(network: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the learning rate of each of a backbone's parameters: smaller, the farther it is from the head.

    Its blocks are counted from the head down: the last one has the factor decay, the one before decay², and what comes
    before the first block decay^(blocks + 1). What lies between two blocks goes with the later one, what lies behind
    the last block with that.

    Args:
        network: with a backbone.
        decay: of a layer.

    Returns:
        Path below the network → factor, of the backbone's parameters alone.

    Raises:
        ValueError: if there is no backbone of several blocks.

    Source:
        Clark et al., ELECTRA (ICLR 2020); as in BEiT (Bao et al., ICLR 2022).
    """
    path = backbone_path(network)
    blocks = [] if path is None else _blocks(network.get_submodule(path))
    if path is None or len(blocks) < 2:
        raise ValueError(
            f"train.layer_decay: {_kind(network)} has no backbone of several blocks (a submodule backbone or encoder); "
            "train.lr_factors takes paths"
        )
    factors, reached = {}, 0
    for name, _ in network.get_submodule(path).named_parameters():
        own = next((number for number, block in enumerate(blocks, 1) if name.startswith(f"{block}.")), None)
        if own is None:
            own = min(reached + 1, len(blocks)) if reached else 0
        reached = max(reached, own)
        factors[f"{path}.{name}"] = decay ** (len(blocks) + 1 - own)
    return factors


def _blocks(module: nn.Module, path: str = "") -> list[str]:
    """Paths of the blocks that follow one another: elements of a sequence that have layers of their own.

    A stage, whose own blocks follow one another in a sequence, is no block; one whose blocks lie side by side is.
    """
    found = []
    for name, child in module.named_children():
        below = _blocks(child, f"{path}{name}.")
        in_a_row = len(below) > 1 and len({block.rpartition(".")[0] for block in below}) == 1
        if not isinstance(module, CONTAINERS) or isinstance(child, CONTAINERS) or in_a_row:
            found += below
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            found.append(f"{path}{name}")
    return found


def _inner(network: nn.Module) -> nn.Module:
    return network.network if isinstance(network, External) else network


def _kind(network: nn.Module) -> str:
    return type(_inner(network)).__name__
