"""From a configuration to the things it names: data sets, networks, the student."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from segdistill._types import Size
from segdistill.data import FileDataset, SegmentationDataset, build_dataset, dataset_options
from segdistill.data.dataset import MissingMasks
from segdistill.data.mixing import Mixing
from segdistill.data.packed import PackedDataset
from segdistill.data.subsets import PartlyLabelled, Subset, choose_labelled, keep_only
from segdistill.data.transforms import TrainTransform
from segdistill.engine.config import Config
from segdistill.engine.data_config import DataConfig
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.student import load_student, read_card
from segdistill.engine.supervised_config import SupervisedConfig
from segdistill.models import build_model
from segdistill.models.checkpoints import load_weights
from segdistill.models.external import is_external
from segdistill.models.proposal import propose_taps
from segdistill.supervised import Supervised
from segdistill.taps import ClassMap, Tapped

WITHOUT_LABELS: dict[str, dict[str, Any]] = {
    "folder": {"images": ".", "masks": None, "splits": {"train": "."}},
    "huggingface": {"mask": None},
}
"""Options of data sets that can do without labels."""


def build_split(data: DataConfig, split: str) -> SegmentationDataset:
    """One split of the configured data set.

    Args:
        data: section of the configuration.
        split: `train`, `val` or `test`.

    Raises:
        ValueError: as `build_dataset`; or if the data are read from a pack, and it is of other data.
    """
    return keep_only(build_whole(data, split, data.packed), split, data.only)


def build_whole(data: DataConfig, split: str, packed: str | None = None) -> SegmentationDataset:
    """All images of a split, whatever `data.only` says; where `data.labelled` is given, some of `train` may lack masks.

    Args:
        data: section of the configuration.
        split: `train`, `val` or `test`.
        packed: folder of a pack that is read instead of the files.

    Raises:
        ValueError: as `build_split`.
    """
    try:
        if packed is not None:
            return PackedDataset(packed, split, name=data.name, options=data.options)
        return build_dataset(data.name, split, **data.options)
    except MissingMasks as error:
        if split != "train" or data.labelled is None:
            raise
        return error.whole


def build_training(data: DataConfig, *, distils: bool) -> tuple[SegmentationDataset, list[int] | None]:
    """The training images, and which of them have labels.

    Args:
        data: section of the configuration.
        distils: whether anything is learned from images without labels; if not, those with labels come alone.

    Returns:
        The data set, and the positions of its items whose labels count; None where all do.

    Raises:
        ValueError: as `build_split`, or if `data.labelled` names what is not there.
    """
    dataset = build_split(data, "train")
    if data.labelled is None:
        return dataset, None
    labelled = choose_labelled(dataset, data.labelled, data.labelled_seed)
    if not distils:
        return Subset(dataset, labelled), None
    return PartlyLabelled(dataset, labelled), labelled


def build_transform(data: DataConfig, mean: Sequence[float] | None = None) -> TrainTransform:
    """The augmentation of training images.

    Args:
        data: section of the configuration.
        mean: RGB in 0 … 1 that the student subtracts, the colour of padding if the configuration names none.

    Raises:
        ValueError: if its keys do not go together.
    """
    own = {key: getattr(data, key) for key in ("crop", "scale", "scale_step", "fit", "flip", "cat_max_ratio")}
    fill = mean if data.fill is None else data.fill
    if fill is not None:
        own["fill"] = tuple(fill)
    own["photometric"] = data.photometric
    if data.augment is not None and data.augment.colour:
        own |= {"photometric": "fast", "colour": data.augment.colour}
    return TrainTransform(**own, padding=data.padding, size=data.resize, draft=data.draft)


def build_mixing(data: DataConfig) -> Mixing | None:
    """What is put into training images of other ones, or None.

    Args:
        data: section of the configuration.
    """
    augment = data.augment
    if augment is None or not (augment.cutmix or augment.classmix):
        return None
    return Mixing(cutmix=augment.cutmix, classmix=augment.classmix)


def build_unlabelled(data: DataConfig) -> SegmentationDataset | None:
    """The images without labels that join each batch, or None.

    Args:
        data: section of the configuration.
    """
    if data.unlabelled is None:
        return None
    name, options = data.unlabelled.name, data.unlabelled.options
    known = dataset_options(name).model_fields
    inherited = {key: data.options[key] for key in ("image_range", "max_pixels", "size") if key in data.options}
    options = {key: value for key, value in inherited.items() if key in known} | WITHOUT_LABELS.get(name, {}) | options
    dataset = build_dataset(name, "train", **options)
    if isinstance(dataset, FileDataset):
        dataset.masks = None
    return dataset


def build_network(config: NetworkConfig, num_classes: int, role: str) -> nn.Module:
    """The network that a section names, from a checkpoint, or by name with or without weights.

    Args:
        config: section of the configuration.
        num_classes: of the data set.
        role: `student` or `teacher`, for messages.

    Raises:
        ValueError: if nothing is named, or the classes do not agree.
    """
    if config.checkpoint is not None:
        network = load_student(config.checkpoint)
        classes = read_card(config.checkpoint)["classes"]
        if len(classes) != num_classes and config.class_map is None:
            raise ValueError(
                f"{role}: {config.checkpoint} has {len(classes)} classes ({', '.join(classes)}), the data "
                f"{num_classes}{_map_hint(role)}"
            )
        return network
    if config.name is None:
        raise ValueError(f"{role}: name a network (name: pspnet_resnet18) or a trained one (checkpoint: runs/…)")
    own = config.num_classes or (None if config.classes is None else len(config.classes))
    options = {
        **config.options,
        "normalisation": config.normalisation,
        "source": config.source,
        "align_corners": config.align_corners,
    }
    if config.weights == "published":
        options["pretrained"] = "published"
        network = build_model(config.name, num_classes=own, **options)
    elif config.weights is not None:
        if own is None and is_external(config.name):
            own = num_classes
        key = config.weights_key
        network = load_weights(config.name, config.weights, num_classes=own, weights_key=key, **options)
    else:
        network = build_model(config.name, num_classes=num_classes if own is None else own, **options)
    count = count_classes(network, num_classes)
    if count != num_classes and config.class_map is None:
        raise ValueError(f"{role}: {config.name} has {count} classes, the data {num_classes}{_map_hint(role)}")
    return network


def _map_hint(role: str) -> str:
    hint = f"; say which is which: {role}.class_map={{its class: the data's class, …}}, or names for those of one name"
    return hint if role != "student" else f"{hint}, which is for evaluation: a student that is trained has the data's"


def count_classes(network: nn.Module, default: int) -> int:
    """How many classes a network says that it has.

    Args:
        network: any.
        default: where it does not say.
    """
    spec: dict[str, Any] = getattr(network, "spec", None) or {}
    return int(spec.get("num_classes") or default)


def tap(network: nn.Module, config: NetworkConfig | None = None, class_map: ClassMap | None = None) -> Tapped:
    """A network with its own taps, or proposed ones, and those that its section adds.

    Args:
        network: any.
        config: its section of the configuration.
        class_map: of a teacher with other classes.
    """
    if hasattr(network, "taps"):
        own: Any = network
        taps, classifier = dict(own.taps), getattr(own, "classifier_path", None)
    else:
        taps, classifier = propose_taps(network)
    if config is not None:
        taps |= config.taps or {}
        classifier = config.classifier or classifier
    return Tapped(network, taps, classifier, class_map)


def build_student(config: Config, num_classes: int, network: nn.Module | None = None) -> Tapped:
    """The tapped student.

    Args:
        config: the configuration.
        num_classes: of the data set.
        network: the user's own network instead of the configured one.
    """
    section = config.student
    if section.class_map is not None:
        raise ValueError("student.class_map: a trained student has the data's classes; class_map belongs into teacher")
    network = build_network(section, num_classes, "student") if network is None else network
    aux = getattr(network, "aux", None)
    if (config.train.aux_weight == 0 or not config.supervised.labels) and isinstance(aux, nn.Module):
        aux.requires_grad_(False)  # it would be left without a gradient, which several processes cannot have
    return tap(network, section)


def build_supervised(config: SupervisedConfig, classes: Sequence[str], size: Size) -> Supervised:
    """The loss of the labels; balanced weights of classes are 0 until they are counted.

    Args:
        config: section of the configuration.
        classes: of the data set.
        size: (H,W) of a training image.

    Raises:
        ValueError: if there are not as many weights as classes, or no pixel would be too easy.
    """
    weights = [0.0] * len(classes) if config.class_weights == "balanced" else config.class_weights
    if weights is not None and len(weights) != len(classes):
        raise ValueError(
            f"supervised.class_weights: {len(weights)} numbers for {len(classes)} classes ({', '.join(classes)}); give "
            "one for each, or balanced"
        )
    pixels = size[0] * size[1]
    if config.ohem is not None and config.ohem_min_kept >= pixels:
        raise ValueError(
            f"supervised.ohem_min_kept is {config.ohem_min_kept}, but a training image has {pixels} pixels: none would "
            f"be left out; take {pixels // 5}, say, a fifth"
        )
    options = config.model_dump(exclude={"class_weights"})
    return Supervised(**options, class_weights=weights)
