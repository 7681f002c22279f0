"""transformers: SegFormer, UperNet, DPT, Mask2Former and whatever else segments by class."""

import importlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill._options import closest
from segdistill._printing import first_line
from segdistill.models.external.wrapper import External
from segdistill.models.normalisation import Normalisation

HALF = (0.5, 0.5, 0.5)
NORMALISATIONS = {
    "dpt": Normalisation(mean=HALF, std=HALF),
    "beit": Normalisation(mean=HALF, std=HALF),
    "mobilenet_v2": Normalisation(mean=HALF, std=HALF),
    "mobilevit": Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
    "mobilevitv2": Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
}
"""By type of model, where it is not ImageNet's mean and standard deviation."""
MULTIPLES = {"dpt": 16, "beit": 16, "data2vec-vision": 16, "mobilevit": 32, "mobilevitv2": 32}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _segformer(depths: list[int], widths: list[int], decoder: int) -> dict[str, Any]:
    return {
        "model_type": "segformer",
        "depths": depths,
        "hidden_sizes": widths,
        "decoder_hidden_size": decoder,
    }


def _convnext(depths: list[int], width: int) -> dict[str, Any]:
    widths = [width * 2**i for i in range(4)]
    return {"model_type": "convnext", "depths": depths, "hidden_sizes": widths, "out_features": STAGES}


def _swin(depths: list[int], width: int, window: int = 7) -> dict[str, Any]:
    heads = [width * 2**i // 32 for i in range(4)]
    return {
        "model_type": "swin",
        "depths": depths,
        "embed_dim": width,
        "num_heads": heads,
        "window_size": window,
        "out_features": STAGES,
    }


def _upernet(backbone: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "upernet", "backbone_config": backbone, "use_auxiliary_head": False}


def _mask2former(backbone: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "mask2former", "backbone_config": backbone}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "segformer-b0": _segformer([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "segformer-b1": _segformer([2, 2, 2, 2], [64, 128, 320, 512], 256),
    "segformer-b2": _segformer([3, 4, 6, 3], [64, 128, 320, 512], 768),
    "segformer-b3": _segformer([3, 4, 18, 3], [64, 128, 320, 512], 768),
    "segformer-b4": _segformer([3, 8, 27, 3], [64, 128, 320, 512], 768),
    "segformer-b5": _segformer([3, 6, 40, 3], [64, 128, 320, 512], 768),
    "upernet-convnext-tiny": _upernet(_convnext([3, 3, 9, 3], 96)),
    "upernet-convnext-small": _upernet(_convnext([3, 3, 27, 3], 96)),
    "upernet-convnext-base": _upernet(_convnext([3, 3, 27, 3], 128)),
    "upernet-swin-tiny": _upernet(_swin([2, 2, 6, 2], 96)),
    "upernet-swin-small": _upernet(_swin([2, 2, 18, 2], 96)),
    "upernet-swin-base": _upernet(_swin([2, 2, 18, 2], 128, 12)),
    "dpt-large": {
        "model_type": "dpt",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 384,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "use_auxiliary_head": False,
    },
    "mask2former-swin-tiny": _mask2former(_swin([2, 2, 6, 2], 96)),
    "mask2former-swin-small": _mask2former(_swin([2, 2, 18, 2], 96)),
    "mask2former-swin-base": _mask2former(_swin([2, 2, 18, 2], 128, 12)),
}
"""Configurations that need no hub, by name; published identifiers such as `nvidia/mit-b0` are traced back to them."""
EXAMPLES = ["nvidia/mit-b0", *ARCHITECTURES]
UNSAFE = re.compile(r"_?attn_implementation|_?experts_implementation|auto_map|quantization_config|custom_pipelines|_.*")
"""Keys of a configuration that could name code to fetch, besides what a library noted for itself."""


class MaskClassifier(External):
    """A network that gives queries, each with class scores and a mask (MaskFormer and its successors).

    Its logits are the logarithm of the scores that the queries' classes and masks add up to, whose softmax is the share
    of each class in them.
    """

    def run(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        output = self.network(pixel_values=images)
        classes = output["class_queries_logits"].softmax(-1)[..., :-1]  # the last one is "no object"
        scores = torch.einsum("nqc,nqhw->nchw", classes, output["masks_queries_logits"].sigmoid())
        return scores.clamp(min=1e-6).log()


def architecture(name: str) -> str | None:
    """The built-in configuration that a name stands for, or None.

    Args:
        name: one of `ARCHITECTURES`, or a published identifier.

    >>> architecture("nvidia/segformer-b2-finetuned-ade-512-512")
    'segformer-b2'
    """
    bare = name.rpartition("/")[2].lower().replace("mit-b", "segformer-b")
    return next((known for known in ARCHITECTURES if bare == known or bare.startswith(f"{known}-")), None)


def build_hf(
    name: str,
    num_classes: int | None,
    *,
    aux: bool = False,
    pretrained: bool | str = False,
    config: dict[str, Any] | None = None,
) -> External:
    """A network of transformers.

    Args:
        name: an architecture such as `segformer-b2`, an identifier on the hub, or a folder with a `config.json`.
        num_classes: C; None for those of the published network.
        aux: not to be had here.
        pretrained: True for whatever weights the hub or the folder has, with a new classifier where the classes differ;
            `published` for the complete network.
        config: entries of its configuration that replace the named ones, or, with `model_type`, all of it.

    Raises:
        ValueError: on an unknown name, a network that does not segment, or what cannot be fetched.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ValueError(f"hf:{name} needs transformers; pip install 'segdistill[hf]'") from None
    if aux:
        raise ValueError(f"hf:{name}: auxiliary heads of transformers are left out; leave out aux")
    if isinstance(pretrained, str) and pretrained != "published":
        raise ValueError(f"hf:{name}, pretrained: expected true, false or published, got {pretrained}")
    with quiet():
        made = _configuration(transformers, name, config, fetch=bool(pretrained))
        if num_classes is not None and (pretrained != "published" or made.num_labels == num_classes):
            if made.num_labels != num_classes:
                made.num_labels = num_classes
        elif num_classes is not None:
            raise ValueError(f"hf:{name} is published with {made.num_labels} classes, not {num_classes}")
        network = _network(transformers, name, made, bool(pretrained), strict=pretrained == "published")
    if getattr(network, "auxiliary_head", None) is not None:
        network.auxiliary_head = None  # type: ignore[assignment]
    wrapped = _wrapped(name, network, made, published=bool(pretrained))
    wrapped.spec = {
        "num_classes": made.num_labels,
        "aux": False,
        "pretrained": False,
        "config": clean(json.loads(made.to_json_string(use_diff=True))),
    }
    return wrapped


def _wrapped(name: str, network: nn.Module, config: Any, *, published: bool) -> External:
    kind = str(config.model_type)
    square = kind == "dpt" and not config.is_hybrid and config.backbone_config is None
    labels = [str(label) for _, label in sorted(config.id2label.items())]
    options: dict[str, Any] = {
        "normalisation": _normalisation(name, kind, fetch=published),
        "multiple": MULTIPLES.get(kind, 1),
        "square": square,
        "classes": None if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels,
    }
    ends = {"low1": "hidden_states_norms.stage1", "low2": "hidden_states_norms.stage2"}
    if not _universal(config):
        return External(network, taps=_ending(network, ends), **options)
    return MaskClassifier(network, taps=_ending(network, {**ends, "features": "mask_projection"}), **options)


def _ending(network: nn.Module, ends: dict[str, str]) -> dict[str, str]:
    """Tap name → the one path that ends so, for those that there are."""
    paths = [path for path, _ in network.named_modules()]
    found = {tap: [path for path in paths if path.endswith(end)] for tap, end in ends.items()}
    return {tap: those[0] for tap, those in found.items() if len(those) == 1}


def _universal(config: Any) -> bool:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return config.model_type in auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES


def _configuration(transformers: Any, name: str, changes: dict[str, Any] | None, *, fetch: bool) -> Any:
    known = architecture(name)
    if changes is not None and "model_type" in changes:
        entries = dict(changes)
    elif (Path(name).expanduser() / "config.json").is_file():
        entries = json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
    elif known is not None and not fetch:
        entries = dict(ARCHITECTURES[known])
    elif "/" in name:
        try:
            entries = transformers.PretrainedConfig.get_config_dict(name)[0]
        except Exception as error:
            raise ValueError(_offline(name, error)) from error
    else:
        raise ValueError(f"no model hf:{name}{closest(name, ARCHITECTURES)}; a folder needs a config.json")
    entries = clean({**entries, **(changes or {})})
    kind = entries.pop("model_type", None)
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"hf:{name}: transformers {transformers.__version__} knows no model_type {kind!r}")
    return transformers.CONFIG_MAPPING[kind].from_dict(entries)


def clean(entries: Any) -> Any:
    """A configuration without what a library noted for itself, and without anything that names code or weights.

    Args:
        entries: of the configuration.
    """
    if isinstance(entries, dict):
        kept = {k: clean(v) for k, v in entries.items() if not UNSAFE.fullmatch(k) and k != "transformers_version"}
        return {**kept, "use_pretrained_backbone": False} if "use_pretrained_backbone" in kept else kept
    return [clean(entry) for entry in entries] if isinstance(entries, list) else entries


def _network(transformers: Any, name: str, config: Any, weights: bool, *, strict: bool) -> nn.Module:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    semantic = config.model_type in auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    if not semantic and not _universal(config):
        raise ValueError(f"hf:{name} is a {config.model_type}, which does not segment by class")
    cls = transformers.AutoModelForSemanticSegmentation if semantic else transformers.AutoModelForUniversalSegmentation
    if not weights:
        return cls.from_config(config).float()  # type: ignore[no-any-return]
    try:
        network, report = cls.from_pretrained(
            str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name,
            config=config,
            ignore_mismatched_sizes=not strict,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(_offline(name, error)) from error
    if strict and report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"hf:{name} is published without {len(missing)} tensors, {missing[0]} first; train it first")
    return network.float()  # type: ignore[no-any-return]


def _offline(name: str, error: Exception) -> str:
    where = "read" if Path(name).expanduser().is_dir() else "fetch"
    return (
        f"cannot {where} hf:{name} ({first_line(error)[:150]}); for random weights name an architecture such as "
        "hf:segformer-b2, or give a folder with config.json and model.safetensors"
    )


def _normalisation(name: str, kind: str, *, fetch: bool) -> Normalisation:
    path = Path(name).expanduser() / "preprocessor_config.json"
    default = NORMALISATIONS.get(kind, Normalisation())
    if not path.is_file() and fetch:
        hub = importlib.import_module("huggingface_hub")
        try:
            path = Path(hub.hf_hub_download(name, "preprocessor_config.json"))
        except Exception:
            return default
    if not path.is_file():
        return default
    entries = json.loads(path.read_text(encoding="utf-8"))
    bgr = bool(entries.get("do_flip_channel_order", False))
    white = round(255 * entries.get("rescale_factor", 1 / 255), 6) if entries.get("do_rescale", True) else 255.0
    if not entries.get("do_normalize", "image_mean" in entries):
        return Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), range=white, bgr=bgr)
    mean, std = entries.get("image_mean", default.mean), entries.get("image_std", default.std)
    return Normalisation(mean=mean, std=std, range=white, bgr=bgr)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from telling what it fills in by itself, for a while."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
