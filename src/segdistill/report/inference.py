"""One pass of several networks over the validation split: confusions, scores of each image, distances of prototypes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdistill._printing import untold
from segdistill._types import Size, Stages, Told
from segdistill.data import SegmentationDataset
from segdistill.data.sampler import eval_loader
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.modes import evaluating
from segdistill.engine.protocol import PLAIN, Protocol, infer_ids
from segdistill.engine.runtime import Runtime, runtime
from segdistill.engine.student import load_student, read_card
from segdistill.metrics import class_iou, confusion_matrix, image_counts
from segdistill.report.classes import Matrix
from segdistill.report.collect import has_student
from segdistill.report.prototypes import ClassDistances, Prototypes
from segdistill.report.study import Group, Study
from segdistill.report.teachers import build_mean, take_figures
from segdistill.taps import Tapped, match_maps


@dataclass
class Survey:
    """What a pass over a split found; networks by their group's label."""

    dataset: SegmentationDataset
    size: Size | None
    networks: dict[str, Tapped]
    run: Runtime
    protocol: Protocol = PLAIN
    confusion: dict[str, Matrix] = field(default_factory=dict)
    """(C,C) counts, truth along rows."""
    by_image: dict[str, Matrix] = field(default_factory=dict)
    """IoU of each class in each image, (images, C); NaN for a class that is not in the image's truth."""
    features: dict[str, ClassDistances] = field(default_factory=dict)
    scores: dict[str, ClassDistances] = field(default_factory=dict)

    def predict(self, index: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One image again: the picture (3,H,W) in 0…1, the truth (H,W), each network's classes (H,W).

        Args:
            index: of the image.
        """
        image, target = EvalTransform(size=self.size)(*self.dataset[index])
        with torch.no_grad():
            found = {
                name: infer_ids(_Watched(net), image[None].to(self.run.device), self.protocol)
                for name, net in self._each()
            }
        return image, target, {name: ids[0].cpu() for name, ids in found.items()}

    def _each(self) -> Iterator[tuple[str, Tapped]]:
        yield from self.networks.items()

    def look(
        self, network: Tapped, images: Tensor, names: frozenset[str], wanted: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A network's classes of images (N,H,W) under the protocol, and its taps of the whole images.

        Args:
            network: one of `networks`.
            images: (N,3,H,W).
            names: of the taps.
            wanted: whether taps are wanted; the protocol may make them cost a second pass.
        """
        images, watched = images.to(self.run.device), _Watched(network, names)
        ids = infer_ids(watched, images, self.protocol)
        if wanted and not self.protocol.sees_once:
            watched(images)
        return ids, watched.taps


class _Watched(nn.Module):
    """A tapped network that gives its output, as any other does, and remembers its taps."""

    def __init__(self, network: Tapped, names: frozenset[str] = frozenset()):
        super().__init__()
        self.network, self.names = network, names | {"logits", "output"}
        self.align_corners = network.align_corners
        self.taps: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        self.taps = self.network(images, self.names)
        return self.taps["output"]


@contextmanager
def survey(
    study: Study, device: str = "auto", say: Callable[[str], object] = print, progress: Stages | None = None
) -> Iterator[Survey]:
    """Run the teacher and one student of each group over the validation split; they stay loaded meanwhile.

    Args:
        study: the runs.
        device: as for `runtime`.
        say: prints a line.
        progress: as for `write_report`.

    Raises:
        ValueError: if data or weights are not there.
    """
    focus = study.focus.first
    config = load_config(focus.folder)
    data = config.data
    dataset = build_split(data, "val")
    with ExitStack() as stack:
        run = stack.enter_context(runtime(device))
        groups = [group for group in study.everyone if has_student(group.first.folder)]
        if not groups:
            raise ValueError("none of the runs has a student yet")
        networks = {group.label: _load(group, study, dataset.classes).to(run.device) for group in groups}
        folders = {group.label: group.first.folder for group in groups}
        teacher = study.teacher.label if study.teacher else ""
        for name, network in networks.items():
            classes = read_card(folders[name])["classes"]
            if classes != dataset.classes and not (study.members and name == teacher):  # built for these classes
                raise ValueError(f"{name} has other classes than the data: {', '.join(classes)}")
            stack.enter_context(evaluating(network))
        say(f"{len(dataset)} images through {', '.join(networks)}")
        found = Survey(dataset, data.resize, networks, run, config.eval.build())
        with (progress or untold)("images") as told:
            _look(found, data.workers, teacher if teacher in networks else None, told)
        if study.teacher is not None and study.members and teacher in networks:
            counts = torch.from_numpy(found.confusion[teacher])
            take_figures(study.teacher.first, networks[teacher], counts, dataset.classes, found.protocol.absent)
        yield found


def _look(found: Survey, workers: int, teacher: str | None, told: Told) -> None:
    """Fill a survey."""
    classes, run = len(found.dataset.classes), found.run
    counts = {name: confusion_matrix(classes).to(run.device) for name in found.networks}
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in found.networks}
    tapped = {name: frozenset({"features"} & set(network.paths)) for name, network in found.networks.items()}
    students = [name for name in found.networks if name != teacher and teacher is not None]
    prototypes = {
        (name, space): Prototypes(classes, mapped=space == "features")
        for name in students
        for space in ("features", "logits")
        if space == "logits" or (teacher and tapped[name] and tapped[teacher])
    }
    with torch.no_grad():
        for index, (images, target) in enumerate(eval_loader(found.dataset, workers=workers, size=found.size)):
            target = target.to(run.device)
            taps: dict[str, dict[str, Tensor]] = {}
            for name, network in found.networks.items():
                ids, taps[name] = found.look(network, images, tapped[name], bool(prototypes))
                counts[name].update(ids, target)
                rows[name].append(_image_iou(ids, target, classes))
            for (name, space), gathered in prototypes.items():
                own, known = match_maps({space: taps[name][space]}, {space: taps[str(teacher)][space]})
                gathered.add(own[space], known[space], target, fit=index % 2 == 0)
            told(index + 1, len(found.dataset))
    found.confusion = {name: counter.confmat.cpu().double().numpy() for name, counter in counts.items()}
    found.by_image = {name: np.stack(one) for name, one in rows.items()}
    for space, into in (("features", found.features), ("logits", found.scores)):
        into |= {n: d for n in students if (n, space) in prototypes and (d := prototypes[n, space].distances())}


def _load(group: Group, study: Study, classes: Sequence[str]) -> Tapped:
    """A group's network with its taps, as its own configuration names them, or a student's as its teacher."""
    run = group.first
    if group is study.teacher and study.members:
        return build_mean(study.focus.first, classes).requires_grad_(False)
    section = load_config(run.folder).student if run.config else None
    if group is study.teacher:
        focus = study.focus.first
        sections = load_config(focus.folder).teachers if focus.teachers else []
        section = next((one for one in sections if one.checkpoint), section)
    taps, classifier = (section.taps, section.classifier) if section else (None, None)
    return Tapped(load_student(run.folder), taps, classifier).requires_grad_(False)


def _image_iou(ids: Tensor, target: Tensor, classes: int) -> NDArray[np.float64]:
    """IoU of each class that the image's truth has, (C,), else NaN."""
    counts = image_counts(ids, target, classes).cpu()
    return np.asarray(class_iou(counts).masked_fill(counts[1] == 0, torch.nan).numpy())


def image_means(by_image: Mapping[str, Matrix], name: str) -> NDArray[np.float64]:
    """Mean IoU of each image over the classes in its truth, (images,); NaN for an image without labels.

    Args:
        by_image: of a survey.
        name: of a network.
    """
    values = by_image[name]
    known = (~np.isnan(values)).sum(1)
    empty = np.full(len(values), np.nan)
    means: NDArray[np.float64] = np.divide(np.nansum(values, 1), known, out=empty, where=known > 0)
    return means
