"""The demo: teacher, baseline and distilled students on built-in data, from nothing to a table in minutes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdistill._types import Stages
from segdistill.comparison.executors.local import Local
from segdistill.comparison.grid import compare
from segdistill.comparison.statistics import mean_and_deviation
from segdistill.comparison.watch import Watch
from segdistill.engine.student import load_student
from segdistill.measure.benchmark import milliseconds
from segdistill.report import write_report

DATA: dict[str, Any] = {
    "name": "synthetic",
    "size": [64, 64],
    "crop": [64, 64],
    "scale": [0.8, 1.4],
    "batch_size": 8,
    "workers": 1,
    "eval_batch_size": 10,
}
GRID: dict[str, Any] = {
    "data": DATA,
    "student": {"name": "deeplabv3plus_resnet18_quarter", "head_width": 32},
    "train": {"steps": 250, "lr": 0.05, "warmup": 20, "log_every": 50},
    "teacher": {
        "config": {
            "student": {"name": "deeplabv3plus_resnet18_half", "head_width": 128},
            "train": {
                "steps": 400, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "warmup": 20, "log_every": 100
            },
        }
    },
    "methods": ["none", "kd", "cwd"],
    "split": "val",
}  # fmt: skip


def run_demo(
    out: Path,
    seeds: int = 2,
    say: Callable[[str], Any] = print,
    overrides: Sequence[str] = (),
    *,
    silent: bool = False,
    watch: Callable[[Watch], Any] | None = None,
) -> list[dict[str, Any]]:
    """Train whatever is not in the folder yet, and gather the table.

    Args:
        out: folder of the runs; a finished run is kept, an interrupted one goes on.
        seeds: runs per student.
        say: prints a line.
        overrides: `key.sub=value`, changes to the comparison.
        silent: whether the runs print into their logs.
        watch: as for `compare`.

    Returns:
        A row per network and method: `run`, `network`, `params`, `flops`, `ms` per image, `miou` as text (mean ±
        standard deviation over seeds, in percent), `mious`.

    Raises:
        ValueError: if a run failed, with its line.
    """
    began = time.monotonic()
    say(
        f"on scenes that are drawn here: a teacher, then {len(GRID['methods']) * seeds} runs of students; with two "
        "seeds three to seven minutes on two idle cores. Ctrl-C stops, the same command goes on"
    )
    result = compare(GRID, [f"seeds={seeds}", *overrides], out=out, executor=Local(silent=silent), say=say, watch=watch)
    for row in result["rows"]:
        if row["errors"]:
            raise ValueError(row["errors"][0])
    folders = {run["method"]: out / run["folder"] for run in reversed(result["runs"])}
    (teacher,) = result["teachers"].values()
    rows = [
        _row("teacher", out / teacher["run"], {**teacher, "student": teacher["network"], "mious": [teacher["miou"]]})
    ]
    for row in result["rows"]:
        rows.append(_row("baseline" if row["baseline"] else row["method"], folders[row["method"]], row))
    say(f"{time.monotonic() - began:.0f} s; the runs are in {out}; look at one: segdistill eval {folders['cwd']}")
    return rows


def demo_report(out: Path, say: Callable[[str], Any] = print, progress: Stages | None = None) -> None:
    """Write the report on the demo's runs, and say where it is.

    Args:
        out: folder of the runs.
        say: prints a line.
        progress: as for `write_report`.
    """
    try:
        say(f"report: {write_report([out], say=say, progress=progress)}")
    except ValueError as error:  # without the extra `report` the table stands alone
        say(f"no report: {error}")


def _row(name: str, folder: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    mious = [100 * miou for miou in figures["mious"]]
    mean, deviation = mean_and_deviation(mious)
    return {
        "run": name,
        "network": figures["student"],
        "params": figures["params"],
        "flops": figures["flops"],
        "ms": latency(load_student(folder)),
        "miou": f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}"),
        "mious": mious,
    }


def latency(network: nn.Module, size: tuple[int, int] = (64, 64), repeats: int = 10) -> float:
    """Median time of one forward pass on one image on this machine's CPU.

    Args:
        network: images → logits.
        size: (H,W) of the image.
        repeats: forward passes that count; two go before.
    """
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        times = [milliseconds(lambda: network(images), images.device) for _ in range(repeats + 2)]
    return statistics.median(times[2:])
