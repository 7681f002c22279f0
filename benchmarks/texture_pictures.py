"""Draw what descent on SSTKD's two texture terms does, for docs/methods/sstkd.md; built-in data, one seed.

python benchmarks/texture_pictures.py
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _descent import Loss, Stages, descend, make_map, stages, street_images, street_teacher
from _texture_terms import correlation, edges, forms, regions
from segdistill.methods.sstkd import structural_texture
from segdistill.texture import mean_similarity

OUT = Path(__file__).parent.parent / "docs/methods/img"
TEACHER, STUDENT, OLD, MUTED = "#1f6f8b", "#d1495b", "#e0a030", "#8a93a0"
SIZE, IMAGES, TRAIN = (160, 256), 24, 22


def main() -> None:
    """Draw both pictures."""
    torch.set_num_threads(1)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False})
    images = street_images(IMAGES, SIZE)
    found = stages(images, street_teacher(), "deeplabv3plus_resnet18_quarter", 1, train=TRAIN)
    draw_distributions(found)
    draw_edges(found, images[TRAIN])


def trained(found: Stages, loss: Loss) -> tuple[nn.Sequential, nn.Sequential]:
    """The small map before and after descent on a loss alone."""
    kept: list[nn.Sequential] = []
    descend(found, 0, "small", loss, lambda layers, s, t: kept.append(layers) or {})
    torch.manual_seed(0)
    return make_map("small", found.students[0], found.teacher), kept[-1]


@torch.no_grad()
def draw_distributions(found: Stages) -> None:
    """Shares of the positions up to each similarity, in held-out regions."""
    all_forms = forms(found.teacher.shape[1])
    after = {}
    for name in ("own levels, released kernel, graph with own means", "cumulative (the default)"):
        form = all_forms[name]
        with torch.enable_grad():
            before, after[name] = trained(found, lambda layers, s, t, form=form: form(*regions(layers, s, t)))
    shown = {"teacher": None, "student before": before, "after, as first built": after[next(iter(after))]}
    shown["after, as it is now"] = after["cumulative (the default)"]
    curves: dict[str, Tensor] = {}
    for name, layers in shown.items():
        torch.manual_seed(1)
        own, other, weight = regions(layers or before, found.students[0][TRAIN:], found.teacher[TRAIN:])
        curves[name] = (mean_similarity(other) if layers is None else mean_similarity(own, weight)).sort(1).values
    chosen = curves["teacher"].std(1).argsort()[[-1, len(curves["teacher"]) // 2, 2]]
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout="constrained")
    colours = dict(zip(shown, (TEACHER, MUTED, OLD, STUDENT), strict=True))
    for k, (axes, region) in enumerate(zip(panels, chosen.tolist(), strict=True)):
        for name, values in curves.items():
            share = torch.linspace(0, 100, values.shape[1])
            style: Any = {"lw": 3.0 if name == "teacher" else 1.8, "ls": "--" if name == "student before" else "-"}
            axes.plot(values[region], share, color=colours[name], label=name, **style)
        axes.set(xlabel="similarity to the region's mean feature")
        axes.set_title(("a region with much variety", "a usual region", "a region with little variety")[k], loc="left")
    panels[0].set_ylabel("% of the positions up to it")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(OUT / "sstkd_statistical_descent.png", dpi=110)


def draw_edges(found: Stages, image: Tensor) -> None:
    """Gradient magnitude of the maps: the teacher's, the student's before and after each loss."""
    before, bands = trained(found, lambda layers, s, t: structural_texture(layers(s), t))
    _, plain = trained(found, lambda layers, s, t: F.mse_loss(layers(s), t))
    student, teacher = found.students[0][TRAIN : TRAIN + 1], found.teacher[TRAIN : TRAIN + 1]
    with torch.no_grad():
        wanted = edges(teacher)
        maps = {"teacher": wanted}
        for name, layers in (("student before", before), ("after CDM", bands), ("after plain difference", plain)):
            maps[name] = edges(layers(student))
    figure, panels = plt.subplots(1, 5, figsize=(12, 1.9), layout="constrained")
    panels[0].imshow(image.permute(1, 2, 0))
    panels[0].set_title("held-out image", loc="left")
    for axes, (name, values) in zip(panels[1:], maps.items(), strict=True):
        axes.imshow(values[0], cmap="magma", vmin=0, vmax=torch.quantile(values, 0.99))
        alike = "" if name == "teacher" else f": {float(correlation(values, wanted)):.2f}"
        axes.set_title(f"{name}{alike}", loc="left")
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(OUT / "sstkd_structural_descent.png", dpi=110)


if __name__ == "__main__":
    main()
