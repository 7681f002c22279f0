"""A training step on a CPU that others use: threads that spin long while they wait, and threads that soon sleep.

    python benchmarks/waiting.py [--busy 0 1 2 4] [--rounds N]

writes `results/waiting.json`. The threads of PyTorch meet after every operator. As OpenMP is set by default, those that
are there first spin for a millisecond, and take the processor from the one that they wait for, if others want it, too.
Each round starts one new process per policy, in turns, while `--busy` processes do nothing but count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from _measure import RESULTS, machine
from segdistill.cli import SPINS
from segdistill.models import build_model

POLICIES: dict[str, dict[str, str]] = {"default": {}, "brief": {"GOMP_SPINCOUNT": SPINS}}
"""What a process is started with, by name; `segdistill` does the second."""

COUNTING = "import itertools; all(True for _ in itertools.count())"
SECONDS = 5.0
"""How long steps are timed in each process, after the first three."""


def step_ms() -> float:
    """Median time of a small student's training step in this process, milliseconds: 8 images of 96×128."""
    network = build_model("deeplabv3plus_resnet18_quarter", num_classes=11)
    optimizer = torch.optim.AdamW(network.parameters())
    images, target = torch.rand(8, 3, 96, 128), torch.randint(0, 11, (8, 96, 128))
    times: list[float] = []
    while sum(times[3:]) < SECONDS:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(images), target).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def in_a_process(policy: str) -> float:
    """`step_ms` of a new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--child"]
    done = subprocess.run(command, env=kept | POLICIES[policy], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(busy: int, rounds: int) -> dict[str, object]:
    """Both policies in turns, beside other processes."""
    others = [subprocess.Popen([sys.executable, "-c", COUNTING]) for _ in range(busy)]
    try:
        found = [{policy: in_a_process(policy) for policy in POLICIES} for _ in range(rounds)]
    finally:
        for other in others:
            other.kill()
    ratio = statistics.median(line["brief"] / line["default"] for line in found)
    medians = {f"{policy}_ms": round(statistics.median(line[policy] for line in found), 1) for policy in POLICIES}
    return {"busy": busy, **medians, "ratio": round(ratio, 3), "rounds": rounds}


def main() -> None:
    """Measure, print and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(step_ms())
        return
    rows = []
    for busy in arguments.busy:
        rows.append(measure(busy, arguments.rounds))
        print(rows[-1], flush=True)
    facts = {"command": " ".join(["python", *sys.argv]), "machine": machine()}
    path = RESULTS / "waiting.json"
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    main()
