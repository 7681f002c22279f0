"""What a GPU has left to do: steps in bf16 and channels_last, with and without `compile`, and where their time goes.

    python benchmarks/gpu.py [--dry] [--minutes 9] [--only NAME …]

`benchmarks/gpu.sh` runs it. For a heavy and a light pair of networks at 512×512: the step of each method over the
floor and over the student's own step, images per second, peak memory; how much of the copy to the device is hidden
behind a step; and the operators that take most of a step. What the minutes leave no time for is left out and named.
With `--dry` all of it runs on a CPU with tiny networks, so that it is known to work.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from _measure import RESULTS, Work, machine, peak_bytes, seconds, synchronize
from step import CASES, Steps

PAIRS = {
    "heavy": ("pspnet_resnet101", "pspnet_resnet18"),
    "light": ("deeplabv3_resnet18_half", "deeplabv3_resnet18_quarter"),
}
"""Teacher and student."""

DRY = {"light": ("pspnet_resnet18_half", "pspnet_resnet18_quarter")}


class Budget:
    """Time that is left.

    Args:
        minutes: of the whole script.
    """

    def __init__(self, minutes: float):
        self.until = time.monotonic() + 60 * minutes
        self.skipped: list[str] = []

    def allows(self, what: str) -> bool:
        """Whether there is time for another part; if not, it is noted."""
        if time.monotonic() < self.until:
            return True
        self.skipped.append(what)
        return False


def compare_methods(
    steps: Steps, names: Sequence[str], rounds: int, budget: Budget, label: str
) -> list[dict[str, Any]]:
    """Every method's step over the floor and over the student's own step; one method after the other."""
    floor, own = steps.work("none"), steps.alone()
    rows: list[dict[str, Any]] = []
    for name in names:
        if not budget.allows(f"{label} {name}"):
            continue
        work = steps.work(CASES[name][0])
        times = [alternating((work, floor, own), round_) for round_ in range(rounds + 2)][2:]  # two rounds warm up
        ms = statistics.median(t[0] for t in times)
        rows.append(
            {
                "method": name,
                "ms": ms,
                "images_per_s": 1e3 * steps.batch / ms,
                "over_floor": statistics.median(t[0] / t[1] for t in times),
                "over_student": statistics.median(t[0] / t[2] for t in times),
                "peak_mib": peak_bytes(work) / 2**20,
            }
        )
        print(f"{label} {rows[-1]}", flush=True)
        del work
        gc.collect()
    return rows


def alternating(works: Sequence[Work], round_: int) -> tuple[float, ...]:
    """Milliseconds of some works, one directly after the other, in an order that turns round."""
    order = works if round_ % 2 else works[::-1]
    spent = [1e3 * seconds(work) for work in order]
    return tuple(spent if round_ % 2 else spent[::-1])


def copy_overlap(steps: Steps, rounds: int) -> dict[str, float]:
    """How much of a batch's way to the device is hidden behind a step, as the training loop copies it."""
    device, gpu = steps.images.device, steps.images.is_cuda
    here = steps.images.cpu()
    here = here.pin_memory() if gpu else here
    step = steps.alone()

    def copy() -> None:
        here.to(device, memory_format=steps.layout, non_blocking=True)

    def both() -> None:
        copy()
        step()

    times = [alternating((step, copy, both), round_) for round_ in range(rounds + 1)][1:]
    alone, copying, together = (statistics.median(t[i] for t in times) for i in range(3))
    hidden = (alone + copying - together) / copying if copying else 0.0
    return {"step_ms": alone, "copy_ms": copying, "both_ms": together, "hidden": max(0.0, min(1.0, hidden))}


def what_is_left(work: Work, top: int = 12) -> dict[str, Any]:
    """The operators that take most of a step, and the share of it in which the device computes."""
    work()
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    synchronize()
    began = time.perf_counter()
    with profile(activities=activities) as record:
        work()
        synchronize()
    wall = 1e6 * (time.perf_counter() - began)
    kind = "self_device_time_total" if gpu else "self_cpu_time_total"
    averages = sorted(record.key_averages(), key=lambda e: getattr(e, kind), reverse=True)
    whole = sum(getattr(e, kind) for e in averages)
    operators = [
        {"name": e.key[:100], "share": getattr(e, kind) / max(whole, 1e-9), "calls": e.count} for e in averages[:top]
    ]
    return {"busy": whole / wall, "operators": operators}


def main() -> None:
    """Measure until the time is up; print, and write `results/gpu.json` (with `--dry`: nothing unless `--out`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny networks on the CPU: does it run?")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the methods")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the file that is written")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        parser.error("no GPU is there; --dry runs on the CPU")
    device, precision = ("cpu", "fp32") if arguments.dry else ("cuda", "bf16")
    rounds = 1 if arguments.dry else arguments.rounds
    budget = Budget(arguments.minutes)
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "parts": []}
    out = arguments.out or (None if arguments.dry else RESULTS / "gpu.json")

    def keep() -> None:  # after each part: a machine may be taken away
        found["skipped"] = budget.skipped
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")

    for compiled in (False,) if arguments.dry else (False, True):
        for kind, pair in (DRY if arguments.dry else PAIRS).items():
            label = f"{kind}{' compiled' if compiled else ''}"
            if not budget.allows(label):
                continue
            torch.manual_seed(0)
            steps = Steps(
                arguments.dry, device, pair, precision=precision, layout=torch.channels_last, compiled=compiled
            )
            part: dict[str, Any] = {"pair": steps.pair, "batch": steps.batch, "size": steps.size, "compiled": compiled}
            found["parts"].append(part)
            if not compiled:
                part["overlap"] = copy_overlap(steps, rounds)
                part["profile"] = what_is_left(steps.work("cwd"))
                keep()
            part["methods"] = compare_methods(steps, arguments.only, rounds, budget, label)
            keep()
            del steps
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    keep()
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    main()
