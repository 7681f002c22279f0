"""Students of a comparison on images that are worse than those they learned from: noise, blur, fog, dusk.

    python benchmarks/out_of_domain.py RUNS [--split test] [--methods none kd …] [--out FILE.json]

RUNS is the folder of a finished `segdistill compare`. Each image is brought to the size that the networks see, and then
changed: four kinds of change, four severities of each, drawn by a seed of the image alone, so that all students see the
same pictures. Differences are paired by seed, as in the comparison's own table.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from _measure import RESULTS, machine
from segdistill.comparison.labels import baseline_of
from segdistill.comparison.statistics import mean_and_deviation, paired_interval
from segdistill.data import SegmentationDataset
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.config import Config, load_config
from segdistill.engine.evaluate import evaluate
from segdistill.engine.student import load_student
from segdistill.engine.teacher import Mapped, build_teacher

Change = Callable[[Tensor, float, torch.Generator], Tensor]
"""Takes a float image (3,H,W) in 0…1, a strength and the source of chance; its result may leave 0…1."""


def noise(image: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Gaussian noise of a standard deviation, in parts of the whole range."""
    return image + strength * torch.randn(image.shape, generator=chance)


def blur(image: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """A Gaussian filter of a standard deviation, in pixels."""
    side = 2 * int(3 * strength + 0.5) + 1
    blurred: Tensor = tv.gaussian_blur(image, [side, side], [strength, strength])
    return blurred


def fog(image: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """A share of light grey in every pixel: less contrast, more light."""
    return (1 - strength) * image + strength * 0.8


def dusk(image: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """A share of the light that is gone, red before blue, and the noise of the few photons that are left."""
    left = (1 - strength) * torch.tensor([0.9, 1.0, 1.1])[:, None, None]
    dark = image * left
    return dark + (dark.clamp(0) / 500).sqrt() * torch.randn(image.shape, generator=chance)


CHANGES: dict[str, tuple[Change, tuple[float, float, float, float]]] = {
    "noise": (noise, (0.04, 0.08, 0.12, 0.18)),
    "blur": (blur, (0.5, 1.0, 1.5, 2.0)),
    "fog": (fog, (0.3, 0.5, 0.65, 0.8)),
    "dusk": (dusk, (0.4, 0.6, 0.75, 0.85)),
}
"""Strengths of severity 1 to 4."""


class Changed(SegmentationDataset):
    """A split, resized and in memory, whose images are changed.

    Args:
        config: whose data and size are taken.
        split: of the data.
    """

    def __init__(self, config: Config, split: str):
        dataset = build_split(config.data, split)
        self.classes, self.palette, self.names = dataset.classes, dataset.palette, dataset.names
        resize = EvalTransform(size=config.data.resize)
        self.items = [resize(*dataset[index]) for index in range(len(dataset))]
        self.kind: str | None = None
        self.severity = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.items[index]
        if self.kind is not None:
            change, strengths = CHANGES[self.kind]
            image = change(image, strengths[self.severity - 1], torch.Generator().manual_seed(index))
        return image.clamp(0, 1).mul(255).round().byte(), mask


CONDITIONS: list[tuple[str | None, int]] = [(None, 0), *((kind, s) for kind in CHANGES for s in (1, 2, 3, 4))]


def measure(network: torch.nn.Module, config: Config, dataset: Changed) -> dict[str, float]:
    """A network's mean IoU in percent under each condition; the keys are `clean`, `noise 1` and so on."""
    found = {}
    for dataset.kind, dataset.severity in CONDITIONS:
        result = evaluate(network, dataset, protocol=config.eval.build(), batch_size=config.data.eval_batch_size)
        found["clean" if dataset.kind is None else f"{dataset.kind} {dataset.severity}"] = 100 * result["miou"]
    return found


def shares(found: Mapping[str, float]) -> dict[str, float]:
    """The mean over severities of each kind, and over all kinds."""
    kinds = {kind: sum(found[f"{kind} {s}"] for s in (1, 2, 3, 4)) / 4 for kind in CHANGES}
    return {"clean": found["clean"], **kinds, "all changes": sum(kinds.values()) / len(kinds)}


def main() -> None:
    """Evaluate each run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of a comparison")
    parser.add_argument("--split", default="test")
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--out", type=Path, default=RESULTS / "out_of_domain.json")
    parser.add_argument("--sheet", type=Path, help="also a picture of the first image under each condition")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    told = json.loads((arguments.runs / "compare.json").read_text())
    done = [run for run in told["runs"] if run["status"] == "done"]
    done = [run for run in done if not arguments.methods or run["method"] in arguments.methods]
    config = load_config(arguments.runs / done[-1]["folder"])
    dataset = Changed(config, arguments.split)
    if arguments.sheet:
        draw(dataset, arguments.sheet)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for run in done:
        figures = measure(load_student(arguments.runs / run["folder"]), config, dataset)
        found.setdefault(run["method"], {})[run["seed"]] = figures
        print(f"{run['folder']}: {shares(figures)}", file=sys.stderr, flush=True)
    teacher = build_teacher(config, dataset.classes)
    guide = None if teacher is None else measure(Mapped(teacher), config, dataset)
    rows = [summary(name, seeds, found[baseline_of(list(found))]) for name, seeds in found.items()]
    show(rows, guide)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "changes": {k: v[1] for k, v in CHANGES.items()},
    }
    arguments.out.write_text(json.dumps({**facts, "teacher": guide, "runs": found, "rows": rows}, indent=1) + "\n")
    print(f"-> {arguments.out}")


def summary(
    name: str, seeds: Mapping[int, Mapping[str, float]], baseline: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """A method's mean and deviation under each kind of change, and its paired difference from the baseline."""
    row: dict[str, Any] = {"method": name, "seeds": len(seeds)}
    paired = sorted(seeds.keys() & baseline.keys())
    for kind in shares(next(iter(seeds.values()))):
        mean, deviation = mean_and_deviation([shares(one)[kind] for one in seeds.values()])
        ours, theirs = ([shares(side[seed])[kind] for seed in paired] for side in (seeds, baseline))
        interval = None if seeds is baseline else paired_interval(ours, theirs).as_dict()
        row[kind] = {"mean": mean, "deviation": deviation, "difference": interval}
    return row


def show(rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, float] | None) -> None:
    """Print the table."""
    kinds = [key for key in rows[0] if key not in ("method", "seeds")]
    table = Table(
        "method", *kinds, title="mIoU in percent; below, the difference from the baseline with its 95 % interval"
    )
    if teacher is not None:
        table.add_row("teacher", *(f"{value:.2f}" for value in shares(teacher).values()))
    for row in rows:
        table.add_row(row["method"], *(_cell(row[kind]) for kind in kinds))
    Console(width=160).print(table)


def _cell(values: Mapping[str, Any]) -> str:
    spread = "" if values["deviation"] is None else f" ± {values['deviation']:.2f}"
    text = f"{values['mean']:.2f}{spread}"
    d = values["difference"]
    if d is None:
        return text
    inside = "" if d["low"] is None else f" [{d['low']:+.1f}, {d['high']:+.1f}]"
    return f"{text}\n{d['difference']:+.1f}{inside}"


def draw(dataset: Changed, path: Path) -> None:
    """A sheet of one image: a row for each kind of change, a column for each severity, the clean image first."""
    from torchvision.utils import save_image

    images = []
    for kind in CHANGES:
        for dataset.severity in range(5):
            dataset.kind = kind if dataset.severity else None
            images.append(dataset[0][0])
    save_image(torch.stack(images).float() / 255, path, nrow=5)


if __name__ == "__main__":
    main()
