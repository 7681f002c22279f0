"""The demo: teacher, baseline and distilled students on built-in data, from nothing to a table in minutes."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdistill.engine import TrainingStopped, distill, load_student

DATA: dict[str, Any] = {
    "name": "synthetic",
    "size": [64, 64],
    "crop": [64, 64],
    "scale": [0.8, 1.4],
    "batch_size": 8,
    "workers": 1,
    "eval_batch_size": 10,
}
TEACHER: dict[str, Any] = {
    "data": DATA,
    "student": {"name": "deeplabv3plus_resnet18_half", "width": 128},
    "train": {"steps": 400, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "warmup": 20, "log_every": 100},
}
STUDENT: dict[str, Any] = {
    "data": DATA,
    "student": {"name": "deeplabv3plus_resnet18_quarter", "width": 32},
    "train": {"steps": 250, "lr": 0.05, "warmup": 20, "log_every": 50},
}
METHODS: dict[str, Any] = {"none": "none", "kd": {"name": "kd"}, "cwd": {"name": "cwd"}}


def run_demo(out: Path, seeds: int = 2, say: Callable[[str], Any] = print) -> list[dict[str, Any]]:
    """Train whatever is not in the folder yet, and gather the table.

    Args:
        out: folder of the runs; a finished run is kept, an interrupted one goes on.
        seeds: runs per student.
        say: prints a line.

    Returns:
        A row per network and method: `run`, `network`, `params`, `flops`, `ms` per image, `miou` as text (mean ±
        standard deviation over seeds, in percent), `mious`.
    """
    began = time.monotonic()
    teacher = out / "teacher"
    say(f"teacher: {TEACHER['student']['name']}")
    rows = [_row("teacher", [teacher], [_run(TEACHER, teacher)])]
    for method, options in METHODS.items():
        folders = [out / f"{method}_seed{seed}" for seed in range(seeds)]
        summaries = []
        for seed, folder in enumerate(folders):
            say(f"student {STUDENT['student']['name']}, method {method}, seed {seed}")
            config = {
                **STUDENT,
                "teacher": {"checkpoint": str(teacher)},
                "method": options,
                "train": {**STUDENT["train"], "seed": seed},
            }
            summaries.append(_run(config, folder))
        rows.append(_row("baseline" if method == "none" else method, folders, summaries))
    say(f"{time.monotonic() - began:.0f} s; the runs are in {out}; look at one: segdistill eval {out}/cwd_seed0")
    return rows


def _run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return distill(config, out=folder, resume=(folder / "checkpoint.pt").exists())
    except TrainingStopped:
        raise
    except ValueError as error:
        raise ValueError(f"{error} (delete {folder} to start it afresh)") from error


def _row(name: str, folders: list[Path], summaries: list[dict[str, Any]]) -> dict[str, Any]:
    mious = [100 * summary["miou"] for summary in summaries]
    spread = f" ± {statistics.stdev(mious):.2f}" if len(mious) > 1 else ""
    first = summaries[0]
    return {
        "run": name,
        "network": first["student"],
        "params": first["params"],
        "flops": first["flops"],
        "ms": milliseconds(load_student(folders[0])),
        "miou": f"{statistics.mean(mious):.2f}{spread}",
        "mious": mious,
    }


def milliseconds(network: nn.Module, size: tuple[int, int] = (64, 64), repeats: int = 10) -> float:
    """Median time of one forward pass on one image on this machine's CPU.

    Args:
        network: images → logits.
        size: (H,W) of the image.
        repeats: forward passes that count; two go before.
    """
    images = torch.rand(1, 3, *size)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 2):
            began = time.perf_counter()
            network(images)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])
