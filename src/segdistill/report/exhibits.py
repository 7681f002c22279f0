"""What methods show of trained networks: the pictures of their papers, from any finished run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segdistill.data.transforms import EvalTransform
from segdistill.engine.checkpoint import read_checkpoint
from segdistill.engine.config import load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.run_folder import CHECKPOINT
from segdistill.methods import Method, build_method, list_methods, method_class
from segdistill.report.figures import INK, LINE, MARGINS, Album, Drawing
from segdistill.report.inference import Survey
from segdistill.report.study import TEACHER, Group, Study
from segdistill.taps import Tapped, Taps, match_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES, PICTURES = 24, 2
"""How many images numbers are taken of, evenly over the split, and of how many maps are drawn."""
WIDEST = 240
"""Pixels of a map in a figure; larger ones are thinned out."""
RELIEF = "cividis"


@dataclass
class Shown:
    """What a method showed, over all images.

    Args:
        method: whose it is, the label of its group.
        title: of the exhibit.
        note: how it is to be read.
        common: maps that share their colours.
    """

    method: str
    title: str
    note: str
    common: tuple[str, ...]
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    """By what it is of, one tensor for each image: () of a number, (h,w) of a map."""
    images: list[Tensor] = field(default_factory=list)
    """(3,H,W), beside maps."""
    drawing: Drawing | None = None

    @property
    def of_maps(self) -> bool:
        """Whether it is of maps, and not of numbers."""
        return all(value[0].dim() == 2 for value in self.values.values())


def exhibits(album: Album, found: Survey, study: Study) -> list[Shown]:
    """What the methods show, each by the best group that was trained with it.

    A checkpoint that is missing, damaged or of another version is a note of the study.

    Args:
        album: draws the figures.
        found: a survey, its networks loaded.
        study: the runs.
    """
    shown: list[Shown] = []
    teacher = study.teacher.label if study.teacher else ""
    for group in _exhibitors(study):
        if group.label not in found.networks or teacher not in found.networks:
            continue
        try:
            method, critic = _trained_method(found, group, teacher)
        except (ValueError, RuntimeError) as error:
            study.notes.append(f"Nothing shown of {group.label} by its method: {str(error).splitlines()[0]}")
            continue
        shown += _collect(found, group.label, teacher, method, critic)
    colours = {group.label: group.colour for group in study.everyone}
    for place, exhibit in enumerate(shown):
        draw = _maps if exhibit.of_maps else _numbers
        exhibit.drawing = draw(album, exhibit, f"exhibit_{place}", colours)
    return shown


def _exhibitors(study: Study) -> list[Group]:
    """The best group of each method that shows anything, those of one group once."""
    best: dict[str, Group] = {}
    for group in study.groups:
        for name in group.first.methods:
            if name in list_methods() and method_class(name).exhibits is not Method.exhibits:
                best[name] = max((best.get(name, group), group), key=_score)
    return list({id(group): group for group in best.values()}.values())


def _score(group: Group) -> float:
    found = group.result("miou")
    return -1.0 if found is None else found.mean


def _trained_method(found: Survey, group: Group, teacher: str) -> tuple[Method, nn.Module | None]:
    """A run's method with what it learned and remembered, and its critic, as the last checkpoint has them."""
    folder = group.first.folder
    method = build_method(load_config(folder).method).to(found.run.device)
    image = EvalTransform(size=found.size)(*found.dataset[0])[0].to(found.run.device)
    Distiller(found.networks[group.label], method).adapt(found.networks[teacher], image[None])
    state = read_checkpoint(folder / CHECKPOINT)
    own = {key.removeprefix("method."): value for key, value in state["distiller"].items() if key.startswith("method.")}
    method.load_state_dict(own)
    critic = method.make_critic()
    if critic is not None:
        critic.load_state_dict(state.get("critic") or {})
        critic.to(found.run.device).eval()
    return method.to(found.run.device).eval(), critic


@torch.no_grad()
def _collect(found: Survey, label: str, teacher: str, method: Method, critic: nn.Module | None) -> list[Shown]:
    """Run the networks on the images, one by one, and keep what the method shows of each."""
    count = min(IMAGES, len(found.dataset))
    kept: dict[str, Shown] = {}
    for place, index in enumerate(step * len(found.dataset) // count for step in range(count)):
        image, target = (x.to(found.run.device) for x in EvalTransform(size=found.size)(*found.dataset[index]))
        student, others = _taps(found, image[None], label, teacher, method)
        for exhibit in method.exhibits(student, others, target[None], critic):
            shown = kept.setdefault(exhibit.title, Shown(label, exhibit.title, exhibit.note, exhibit.common))
            maps = any(value.dim() == 3 for value in exhibit.values.values())
            if maps and place >= PICTURES:
                continue
            for name, value in exhibit.values.items():
                shown.values.setdefault(label if name == "student" else name, []).append(value[0].float().cpu())
            shown.images += [image.cpu()] if maps else []
    return [shown for shown in kept.values() if shown.values]


def _taps(found: Survey, images: Tensor, label: str, teacher: str, method: Method) -> tuple[Taps, dict[str, Taps]]:
    """The student's taps, and those of the other networks that have them, matched with the student's."""
    wanted = method.student_taps() | method.teacher_taps()
    guide = found.networks[teacher](images, method.teacher_taps())
    own, known = match_maps(found.networks[label](images, wanted), guide)
    others: dict[str, Taps] = {"teacher": known}
    for name, network in found.networks.items():
        if name not in (label, teacher):
            others[name] = match_maps(own, network(images, wanted & _has(network)))[1]
    return own, others


def _has(network: Tapped) -> set[str]:
    return {*network.paths, "logits"}


def _numbers(album: Album, shown: Shown, name: str, colours: Mapping[str, str]) -> Drawing:
    """A row for each network, a dot for each image, a line at the mean."""
    rows = {label: torch.stack(values).tolist() for label, values in shown.values.items()}
    means = {label: sum(values) / len(values) for label, values in rows.items()}

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for y, (label, values) in enumerate(rows.items()):
            colour = TEACHER if label == "teacher" else colours.get(label, INK)
            axes.plot([min(values), max(values)], [y, y], color=LINE, lw=1)
            axes.plot(values, [y] * len(values), "o", ms=3.5, color=colour, alpha=0.45, mew=0)
            axes.plot([means[label]] * 2, [y - 0.25, y + 0.25], color=colour, lw=2)
            told = f"{label}, mean {means[label]:.3g}".replace("-", "−")
            above: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(told, (0, y), (0, 10), fontsize=7, **above)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("score")

    told = ", ".join(f"{label} {mean:.3g}" for label, mean in means.items())
    alt = f"{shown.title} by network; means: {told}"
    size = (3.9, 0.7 + 0.42 * len(rows))
    return album.draw(name, f"{shown.title}: {shown.method}", alt, size, paint, margins=(0.1, MARGINS[1], 0.1, 0.1))


def _maps(album: Album, shown: Shown, name: str, colours: Mapping[str, str]) -> Drawing:
    """A row for each image: the image, then a map for each network."""
    titles = ["image", *shown.values]
    height, width = shown.images[0].shape[1:]
    cell = 1.75
    rows = len(shown.images)

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(rows, len(titles), squeeze=False)
        for row, image in zip(range(rows), shown.images, strict=True):
            limits = _limits([shown.values[label][row] for label in shown.common]) if shown.common else {}
            for axes, title in zip(panels[row], titles, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.grid(visible=False)
                if not row:
                    axes.set_title(title, fontsize=7.5, fontweight="normal")
                if title == "image":
                    axes.imshow(_thin(image).permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="none", aspect="auto")
                    continue
                values = shown.values[title][row]
                scale = limits if title in shown.common else _limits([values])
                axes.imshow(_thin(values).numpy(), cmap=RELIEF, interpolation="none", aspect="auto", **scale)

    inches = (len(titles) * (cell + 0.08), rows * (cell * height / width + 0.08) + 0.25)
    alt = f"{shown.title}: maps of {', '.join(shown.values)}, a row for each of {rows} images"
    margins = (0.04, 0.04, 0.04, 0.25)
    return album.draw(name, f"{shown.title}: {shown.method}", alt, inches, paint, margins=margins)


def _thin(values: Tensor) -> Tensor:
    step = -(-values.shape[-1] // WIDEST)
    return values[..., ::step, ::step]


def _limits(maps: list[Tensor]) -> dict[str, Any]:
    """Colour limits that a few extreme pixels do not decide."""
    values = torch.cat([_thin(one).flatten() for one in maps])
    low, high = values.quantile(torch.tensor([0.01, 0.99])).tolist()
    return {"vmin": low, "vmax": max(high, low + 1e-12)}


def by_kind(shown: list[Shown]) -> Iterator[tuple[bool, list[Shown]]]:
    """Exhibits of numbers, and those of maps, which want a whole row; kinds that are not there left out."""
    for of_maps in (False, True):
        chosen = [one for one in shown if one.of_maps == of_maps]
        if chosen:
            yield of_maps, chosen


__all__ = ["Shown", "by_kind", "exhibits"]
