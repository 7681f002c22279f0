"""What a command costs before it does anything: CPU seconds of a new process, beside those of `import torch`.

    python benchmarks/startup.py [--rounds N]

writes `results/startup.json`. In every round each command runs once beside `import torch`, so that what else the
machine does hits both alike; a ratio is the median over the rounds of (command / import torch) in one round.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

from _measure import RESULTS, machine

TORCH = ["-c", "import torch"]
COMMANDS = {
    "import segdistill": (["-c", "import segdistill"], 0.1),
    "segdistill --help": (["-m", "segdistill", "--help"], None),
    "segdistill --version": (["-m", "segdistill", "--version"], None),
    "segdistill distill --help": (["-m", "segdistill", "distill", "--help"], None),
    "segdistill list config": (["-m", "segdistill", "list", "config"], None),
    "segdistill list methods": (["-m", "segdistill", "list", "methods"], 1.25),
    "a mistake in a key": (["-m", "segdistill", "train", "camvid/student_cpu", "train.stepz=1"], None),
}
"""Name → arguments of Python, and the ratio that is aimed at."""


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time, in user and system mode, of a new Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure, print and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cpu_seconds(TORCH)  # files are read into memory
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.rounds):
        for name, (command, _) in COMMANDS.items():
            pairs[name].append((cpu_seconds(command), cpu_seconds(TORCH)))
    rows = []
    for name, (_, target) in COMMANDS.items():
        ratio = statistics.median(ours / torch for ours, torch in pairs[name])
        seconds = statistics.median(ours for ours, _ in pairs[name])
        rows.append({"command": name, "cpu_s": round(seconds, 3), "ratio": round(ratio, 3), "target": target})
        print(f"{name:28} {seconds:7.3f} s {ratio:7.3f} {'' if target is None else f'(aimed at {target})'}")
    torch_s = statistics.median(torch for both in pairs.values() for _, torch in both)
    facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "import_torch_cpu_s": round(torch_s, 3)}
    path = RESULTS / "startup.json"
    path.write_text(json.dumps({**facts, "rounds": arguments.rounds, "rows": rows}, indent=1) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    main()
