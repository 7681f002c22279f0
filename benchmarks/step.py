"""One training step of each method over the floor: teacher forward, student forward, cross-entropy, backward.

    python benchmarks/step.py [--cache] [--quick] [--only NAME …] [--device cpu|cuda] [--rounds N] [--cpu-time]

With `--cache`, the teacher's taps are read from the disk within the step, and the floor is the student's own step, in
which no teacher runs. Each method is measured with the records in memory, and with them dropped from the page cache.

In every round, each method runs once beside the floor and beside the student's own step, in which no teacher runs: what
a user pays for distilling at all. What else the machine does hits all alike. Its step
is what `engine/loop.py` does with a batch: taps, terms, backward, and for an adversarial method the critic's own step.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from _measure import RESULTS, Clock, Work, machine, peak_bytes, seconds
from segdistill.engine.distiller import Distiller
from segdistill.engine.loop import backward, forward
from segdistill.engine.runtime import Runtime
from segdistill.engine.tap_store import TAPS, TapStore
from segdistill.engine.teacher import observe
from segdistill.methods import build_method
from segdistill.models import build_model
from segdistill.taps import GIVEN, Tapped, Taps

CASES: dict[str, tuple[Any, float | None]] = {
    "kd": ("kd", 1.10),
    "cwd": ("cwd", 1.10),
    "mimic": ("mimic", 1.10),
    "at": ("at", 1.10),
    "local": ("local", 1.10),
    "ifvd": ("ifvd", 1.10),
    "pair": ({"name": "skd", "pixel_weight": 0.0, "holistic_weight": 0.0}, 1.10),
    "skd": ("skd", 1.35),
    "cirkd": ("cirkd", 1.50),
    "fakd": ("fakd", None),
    "fakd (kd)": ({"name": "fakd", "base": "kd"}, None),
    "i2ckd": ("i2ckd", None),
    "i2ckd triplet": ({"name": "i2ckd", "score_weight": 0.0}, 1.02),
    "sstkd": ("sstkd", 1.45),
    "dist": ("dist", 1.10),
    "bpkd": ("bpkd", 1.10),
    "jml": ("jml", 1.10),
}
"""Name → what a config says under `method`, and the ratio to the floor that is aimed at."""

CACHED = ("kd", "cwd", "mimic", "i2ckd", "fakd", "dist", "bpkd", "jml")
CACHED_TARGET = 1.05
"""What `--cache` measures, and the ratio to the student's own step that is aimed at."""

RECORDS = 8
"""Batches in the cache, which are read in turn."""

CLASSES = 19


class Steps:
    """The networks, one batch, and one piece of work per method.

    Args:
        quick: quarter-width networks on small images: does it run?
        device: cpu or cuda.
        names: of teacher and student; None: those of the papers, or small ones if it is quick.
        precision: of the networks.
        layout: of images and weights.
        compiled: whether the networks are compiled between their taps.
    """

    def __init__(
        self,
        quick: bool,
        device: str,
        names: tuple[str, str] | None = None,
        *,
        precision: str = "fp32",
        layout: torch.memory_format = torch.contiguous_format,
        compiled: bool = False,
    ):
        self.run, self.layout, self.compiled = Runtime(torch.device(device), precision), layout, compiled
        if names is None:
            papers = ("pspnet_resnet101", "pspnet_resnet18")
            names = ("pspnet_resnet18_half", "pspnet_resnet18_quarter") if quick else papers
        self.size = (64, 64) if quick else (256, 256) if device == "cpu" else (512, 512)
        self.batch = 2 if device == "cpu" else 8
        self.pair = " → ".join(names)
        teacher, self.student = (
            build_model(name, num_classes=CLASSES).to(device, memory_format=layout) for name in names
        )
        self.teacher = Tapped(teacher.requires_grad_(False)).eval()
        if compiled:
            self.teacher.compile_between_taps()
        self.images = torch.rand(self.batch, 3, *self.size, device=device).contiguous(memory_format=layout)
        squares = torch.randint(0, CLASSES, (self.batch, self.size[0] // 32, self.size[1] // 32), device=device)
        self.target = squares.repeat_interleave(32, 1).repeat_interleave(32, 2)

    def work(self, spec: Any) -> Work:
        """A step with a method; `none` still runs the teacher, which makes it the floor."""
        learner, step = self._learner(spec)
        if learner.method.teacher_taps():
            return step

        def floor() -> None:
            with self.run.autocast():
                observe(self.teacher, self.images, {"logits"})
            step()

        return floor

    def alone(self) -> Work:
        """The student's own step."""
        return self._learner("none")[1]

    def cached(self, spec: Any, folder: Path, *, cold: bool) -> Work:
        """A step with a method whose teacher's taps are read from the disk.

        Args:
            spec: what a config says under `method`.
            folder: of the cache.
            cold: whether the records are dropped from the page cache before each step.
        """
        learner, step = self._learner(spec)
        names = learner.method.teacher_taps()
        seen = observe(self.teacher, self.images, names)
        shapes = {name: tuple(seen[name].shape[1:]) for name in sorted(names - set(GIVEN))}
        store = TapStore(folder, shapes, [self.batch * RECORDS], 1, "float16")
        folder.mkdir()
        store.create()
        for first in range(0, store.entries, self.batch):
            store.write(range(first, first + self.batch), seen)
        return CachedStep(store, step, self.batch, cold=cold)

    def _learner(self, spec: Any) -> tuple[SimpleNamespace, Any]:
        tapped = Tapped(self.student)
        distiller = Distiller(tapped, build_method(spec))
        distiller.adapt(self.teacher, self.images)
        distiller.to(self.images.device).train()
        if self.compiled:
            tapped.compile_between_taps()
        method = distiller.method
        made = method.make_critic()
        critic = None if made is None else made.to(self.images.device)
        optimizer = None if critic is None else method.make_critic_optimizer(critic)
        run, scaler = self.run, torch.amp.GradScaler(self.images.device.type, enabled=False)
        learner = SimpleNamespace(
            model=distiller, method=method, teacher=self.teacher, critic=critic, run=run, scaler=scaler
        )

        def step(stored: Taps | None = None) -> None:
            terms, student, seen = forward(learner, self.images, self.target, 0.5, stored=stored)
            backward(learner, terms, student, seen)
            distiller.zero_grad(set_to_none=True)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return learner, step


class CachedStep:
    """Reads a batch's taps, and does a step with them, one after the other.

    Args:
        store: the cache.
        step: takes the taps.
        batch: images.
        cold: whether `prepare` drops the records from the page cache.
    """

    def __init__(self, store: TapStore, step: Any, batch: int, *, cold: bool):
        self.store, self.step, self.batch, self.cold, self.turn = store, step, batch, cold, 0

    def prepare(self) -> None:
        """What comes before the time is taken."""
        if self.cold:
            self.store.close()  # pages that are mapped are not dropped
            with (self.store.folder / TAPS).open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def __call__(self) -> None:
        """Read the next batch's records and do the step."""
        first = self.turn % RECORDS * self.batch
        self.turn += 1
        self.step(self.store.read([(0, index, 0) for index in range(first, first + self.batch)]))


Times = tuple[float, ...]
"""Milliseconds of a work, of the floor, and of the student's own step, in one round."""


def measure(works: Mapping[str, Work], floor: Work, own: Work, rounds: int) -> dict[str, list[Times]]:
    """Times of each work, beside the floor and the student's own step; a first, uncounted round warms up."""
    times: dict[str, list[Times]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            if isinstance(work, CachedStep):
                work.prepare()
            order = (work, floor, own) if round_ % 2 else (own, floor, work)
            spent = tuple(1e3 * seconds(one) for one in order)
            if round_:
                times[name].append(spent if round_ % 2 else spent[::-1])
        print(f"round {round_}/{rounds}", file=sys.stderr, flush=True)
    return times


def main() -> None:
    """Measure, print the table, write `results/step_<device>.json` (partial runs are not written)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds: does it run?")
    parser.add_argument("--cache", action="store_true", help="steps whose teacher is read from the disk")
    parser.add_argument("--only", nargs="+", choices=CASES, help="some of the methods")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    Clock.add_option(parser)
    arguments = parser.parse_args()
    Clock.choose(arguments)
    names = arguments.only or list(CACHED if arguments.cache else CASES)
    torch.manual_seed(0)
    steps = Steps(arguments.quick, arguments.device)
    targets: dict[str, float | None] = {name: CASES[name][1] for name in names}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a folder in memory would never be cold
        if arguments.cache:
            floor = steps.alone()
            works = {f"{names[0]} (teacher runs)": steps.work(CASES[names[0]][0])}
            for number, name in enumerate(names):
                for cold in (False, True):
                    place = Path(folder) / f"{number}{cold}"
                    works[f"{name} ({'cold' if cold else 'warm'})"] = steps.cached(CASES[name][0], place, cold=cold)
            targets = {name: CACHED_TARGET if isinstance(work, CachedStep) else None for name, work in works.items()}
        else:
            floor = steps.work("none")
            works = {name: steps.work(CASES[name][0]) for name in names}
        times = measure(works, floor, steps.alone(), 2 if arguments.quick else arguments.rounds)
        rows, floor_row = summarise(works, floor, times, targets)
    note = f"{steps.pair}, batch {steps.batch}, {steps.size[0]}×{steps.size[1]}, {CLASSES} classes"
    show(note, floor_row, rows)
    if not arguments.quick and set(names) == set(CACHED if arguments.cache else CASES):
        path = RESULTS / f"step{'_cached' if arguments.cache else ''}_{arguments.device}.json"
        facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "note": note, "floor": floor_row}
        path.write_text(json.dumps({**facts, "rounds": arguments.rounds, "rows": rows}, indent=1) + "\n")
        print(f"-> {path}")


def summarise(
    works: Mapping[str, Work],
    floor: Work,
    times: Mapping[str, list[Times]],
    targets: Mapping[str, float | None],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each work, and one for the floor with the student's own step."""
    floor_ms, own_ms = (statistics.median(t[i] for rounds in times.values() for t in rounds) for i in (1, 2))
    floor_mib = peak_bytes(floor) / 2**20
    rows = []
    for name, work in works.items():
        target = targets[name]
        ratio, to_own = (statistics.median(t[0] / t[i] for t in times[name]) for i in (1, 2))
        mib = peak_bytes(work) / 2**20
        rows.append(
            {
                "method": name,
                "ms": statistics.median(t[0] for t in times[name]),
                "time_ratio": ratio,
                "student_ratio": to_own,
                "target": target,
                "met": target is None or ratio <= target,
                "mib": mib,
                "memory_ratio": mib / floor_mib,
            }
        )
    return rows, {"ms": floor_ms, "mib": floor_mib, "student_ms": own_ms}


def show(note: str, floor: Mapping[str, float], rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("method", "ms", "time / floor", "target", "time / student", "MiB", "memory / floor", title=note)
    own = f"{floor['ms'] / floor['student_ms']:.3f}"
    table.add_row("floor", f"{floor['ms']:.0f}", "1.000", "", own, f"{floor['mib']:.0f}", "1.000")
    for row in rows:
        target = "" if row["target"] is None else f"≤ {row['target']:.2f}{'' if row['met'] else ' MISSED'}"
        ratios = [f"{row[key]:.3f}" for key in ("time_ratio", "student_ratio", "memory_ratio")]
        table.add_row(row["method"], f"{row['ms']:.0f}", ratios[0], target, ratios[1], f"{row['mib']:.0f}", ratios[2])
    Console().print(table)


if __name__ == "__main__":
    main()
