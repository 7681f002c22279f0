"""Finished runs of a comparison as they would lie there, without training."""

import json
import math

import torch
import yaml
from safetensors.torch import save_file

from segdistill.comparison.bootstrap import mean_iou
from segdistill.comparison.plan import load_plan
from segdistill.comparison.result import COMPARISON, counts_path, evaluation_path, gather
from segdistill.comparison.table import write_tables
from segdistill.data import build_dataset
from segdistill.engine.run_folder import write_json

NAMES = build_dataset("synthetic", "val", images=1, size=(32, 32)).classes
SOURCE = {
    "data": {"name": "synthetic", "size": [32, 32], "images": 12, "workers": 0},
    "student": {"name": "pspnet_resnet18_quarter"},
    "teacher": {"checkpoint": "runs/teacher"},
    "train": {"steps": 40, "eval_every": 10},
}
TEACHERS = {
    "synthetic": {
        "run": "teacher", "network": "big", "params": 10**7, "flops": 10**10, "miou": 0.7, "macc": 0.8,
        "pixel_accuracy": 0.9, "iou": {},
    }
}  # fmt: skip
FACTS = {"jobs": 1, "measured": {}, "environment": {}}


def finished(out, *overrides, lift=lambda run: 0.0, noise=0.01, images=12, metrics=lambda run: {}):
    """A plan whose runs are all finished.

    Args:
        out: folder.
        *overrides: of the comparison.
        lift: what a run's recall has above 0.5.
        noise: deviation of the recall of a class in an image.
        images: that were evaluated.
        metrics: what further ones found of a run.
    """
    plan = load_plan(SOURCE, overrides, out)
    truth = torch.randint(50, 400, (images, len(NAMES)), generator=torch.Generator().manual_seed(0))
    for number, run in enumerate(plan.runs):
        generator = torch.Generator().manual_seed(number)
        right = 0.5 + lift(run) + noise * torch.randn(truth.shape, generator=generator)
        hits = (truth * right).long().clamp(min=0).minimum(truth)
        write_run(plan, run, torch.stack([hits, truth, truth], 1), 20.0 / (1 + len(run.method)), metrics(run))
    return plan


def write_run(plan, run, counts, rate, metrics):
    folder = run.folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False))
    save_file({"counts": counts}, counts_path(folder, plan.options.split))
    miou = mean_iou(counts.sum(0)).item()
    scores = {"miou": miou, "macc": miou, "pixel_accuracy": miou, "iou": dict.fromkeys(NAMES, miou)}
    write_json(evaluation_path(folder, plan.options.split), scores | ({"metrics": metrics} if metrics else {}))
    lines = []
    for step in range(10, 41, 10):
        lines.append({"step": step, "loss": 1.0, "ce": 1.0, "images_per_s": rate, "lr": 0.1, "memory_mb": 1.0})
        seen = miou * (1 - math.exp(-step / 20))
        lines.append({"step": step, "val_miou": seen, "val_macc": seen, "val_pixel_accuracy": seen})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs = {"steps": 40, "best_step": 40, "params": 10**6, "flops": 10**9, "flops_size": [32, 32]}
    facts = {"seconds": 9.0, "peak_memory": 2**28, "seed": run.seed, "student": run.config.student.name}
    write_json(folder / "summary.json", {**scores, **costs, **facts})


def gathered(plan, teachers=TEACHERS):
    """The comparison of a plan's runs, written as `compare` writes it."""
    result = gather(plan, teachers, {}, FACTS)
    write_json(plan.out / COMPARISON, result)
    write_tables(result, plan.out)
    return result
