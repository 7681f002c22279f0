"""Train and evaluate every run of a grid: what is done is kept, what is unfinished goes on, what fails is reported."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdistill.comparison.executors.local import Outcome, Task, run_tasks
from segdistill.comparison.plan import LABELS, Cell, Plan, load_plan
from segdistill.comparison.result import COMPARISON, counts_path, evaluation_path, gather
from segdistill.comparison.table import write_tables
from segdistill.comparison.work import evaluate_teacher, measure, train_and_evaluate
from segdistill.data.check import quick_check
from segdistill.engine.build import build_split
from segdistill.engine.config import Config, load_config
from segdistill.engine.lock import locked
from segdistill.engine.loop import TrainingStopped
from segdistill.engine.run_folder import CONFIG, SUMMARY, stored_json, write_json
from segdistill.engine.runtime import environment
from segdistill.engine.settings import TEACHER_PATHS, check_same, fixed_settings
from segdistill.engine.teacher import teacher_digest

PLAN = "plan.json"
"""What is known beside the runs: the teachers' figures, how many runs were trained at a time, and the time of a step
where runs get equal times."""

MEASURED_SHARE = 0.02
"""Share of a budget of seconds for which a step is timed before."""

Say = Callable[[str], Any]


def compare(
    source: str | Path | Mapping[str, Any] | Plan,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Train methods × students × data sets × seeds under one schedule, and hold them against the baseline.

    Args:
        source: as for `load_plan`, or a plan that is ready.
        overrides: `key.sub=value`.
        out: folder (default: `runs/compare_<file>`). Finished runs in it are kept, unfinished ones go on.
        jobs: runs at a time.
        say: prints a line.

    Returns:
        What `gather` returns; it is written to `compare.json`, `.csv`, `.md` and `.tex` in the folder.

    Raises:
        ValueError: with one line, if the configuration or the data are wrong or the teacher cannot be trained. A run
            that fails raises nothing: its line is in the result.
        TrainingStopped: if the process was asked to stop; the runs have saved where they are.
    """
    plan = source if isinstance(source, Plan) else load_plan(source, overrides, out)
    _check_splits(plan)
    try:
        with locked(plan.out):
            return _compare(plan, jobs, say)
    except KeyboardInterrupt:
        raise TrainingStopped(f"stopped; the same command goes on with the runs in {plan.out}") from None


def _compare(plan: Plan, jobs: int, say: Say) -> dict[str, Any]:
    plan = _share_threads(plan, jobs)
    datas = [_source(config) for config in {run.data: run.config for run in plan.runs}.values()]
    at_home = all(_source(config) in datas for config in plan.teachers.values())  # then the split is there for them
    for _, outcome in _finished(_teachers(plan), jobs, say, plan.options.split if at_home else None):
        if outcome.error:
            raise ValueError(f"the teacher could not be trained: {outcome.error}")
    teachers = _evaluate_teachers(plan)
    measured: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if plan.options.budget == "seconds":
        plan, measured, failed = _fit_to_seconds(plan, jobs, say)
    wanted = [run for run in plan.runs if run.folder.name not in failed]
    at_a_time: dict[str, int] = _notes(plan).get("jobs", {})
    for run, outcome in _finished(wanted, jobs, say, plan.options.split):
        if outcome.error:
            failed[run.folder.name] = outcome.error
        elif outcome.value is not None:
            at_a_time[run.folder.name] = jobs
            _note(plan, jobs=at_a_time)
    most = max(at_a_time.get(run.folder.name, jobs) for run in plan.runs)
    facts = {"jobs": most, "measured": measured, "environment": environment()}
    result = gather(plan, teachers, failed, facts)
    write_json(plan.out / COMPARISON, result)
    write_tables(result, plan.out)
    return result


def _source(config: Config) -> dict[str, Any]:
    """Which images a run's are, however many of them have labels."""
    return config.data.model_dump(exclude=set(LABELS))


def _key(run: Cell) -> str:
    """What the runs of all seeds share, as a text."""
    return " ".join(filter(None, run.row))


def _check_splits(plan: Plan) -> None:
    split = plan.options.split
    for config in {(run.data, run.labelled): run.config for run in plan.runs}.values():
        build_split(config.data, "train")
        try:
            quick_check(build_split(config.data, split))
        except ValueError as error:
            hint = "; split=val compares on the validation split" if split == "test" else ""
            raise ValueError(f"{error}{hint}") from None


def _share_threads(plan: Plan, jobs: int) -> Plan:
    """On a CPU, runs at a time share its cores instead of getting into each other's way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def shared(config: Config) -> Config:
        if jobs == 1 or config.train.threads is not None:
            return config
        train = config.train.model_copy(update={"threads": max(1, cores // jobs)})
        return config.model_copy(update={"train": train})

    runs = tuple(replace(run, config=shared(run.config)) for run in plan.runs)
    return replace(plan, runs=runs, teachers={folder: shared(c) for folder, c in plan.teachers.items()})


def _teachers(plan: Plan) -> list[Cell]:
    return [
        Cell(config.data.name, config.student.name or "teacher", "teacher", config.train.seed, config, folder)
        for folder, config in plan.teachers.items()
    ]


def _finished(runs: Sequence[Cell], jobs: int, say: Say, split: str | None) -> Iterator[tuple[Cell, Outcome]]:
    """Train what is not done; each run with its outcome as it ends."""
    waiting: list[Cell] = []
    done: list[Cell] = []
    for run in runs:
        try:
            (done if is_done(run, split) else waiting).append(run)
        except ValueError as error:
            line = f"{error} (delete {run.folder} to start it afresh)"
            say(f"{run.folder.name} failed: {line}")
            yield run, Outcome(error=line)
    if done:
        say(f"{len(done)} of {len(runs)} runs are there already")
    if waiting and jobs > 1:
        say(f"{len(waiting)} runs, {jobs} at a time; each prints into log.txt in its folder")
    yield from ((run, Outcome()) for run in done)
    tasks = [
        Task(train_and_evaluate, (run.config, run.folder, split), run.folder / "log.txt" if jobs > 1 else None)
        for run in waiting
    ]
    began = time.monotonic()
    for count, (position, outcome) in enumerate(run_tasks(tasks, jobs), 1):
        run = waiting[position]
        left = (time.monotonic() - began) / count * (len(waiting) - count)
        ended = (
            f"failed: {outcome.error}" if outcome.error else f"{split or 'val'} mIoU {100 * (outcome.value or 0):.2f}"
        )
        say(f"{count}/{len(waiting)} {run.folder.name} {ended}; about {left / 60:.0f} min left")
        yield run, outcome


def is_done(run: Cell, split: str | None) -> bool:
    """Whether a run was trained and evaluated under its configuration.

    Args:
        run: of the grid.
        split: on which it is evaluated; None: it is trained only.

    Raises:
        ValueError: if the folder holds a run of another configuration.
    """
    if not (run.folder / CONFIG).is_file():
        return False
    check_same(load_config(run.folder), run.config, run.folder)
    files = [run.folder / SUMMARY]
    if split is not None:
        files += [evaluation_path(run.folder, split), counts_path(run.folder, split)]
    return all(file.is_file() for file in files)


def _evaluate_teachers(plan: Plan) -> dict[str, dict[str, Any]]:
    """What the teacher reaches on each data set, in the very evaluation that the students get."""
    known = _notes(plan).get("teachers", {})
    results, tasks = {}, []
    for data, config in {run.data: run.config for run in plan.runs if run.config.distils}.items():
        assert config.teacher is not None
        path = config.teacher.checkpoint or config.teacher.weights
        weights = teacher_digest(config)
        own = next((folder.name for folder in plan.teachers if str(folder) == path), None)
        facts = {"run": own or path or config.teacher.name, "split": plan.options.split, "weights": weights}
        facts["settings"] = _digest(config, "data.", "eval.", "teacher.")
        results[data] = facts
        if weights is not None and facts.items() <= known.get(data, {}).items():
            results[data] = known[data]
        else:
            tasks.append((data, Task(evaluate_teacher, (config, plan.options.split))))
    for position, outcome in run_tasks([task for _, task in tasks]):
        if outcome.error:
            raise ValueError(f"teacher: {outcome.error}")
        results[tasks[position][0]] |= outcome.value
    _note(plan, teachers=results)
    return results


def _digest(config: Config, *parts: str) -> str:
    """What tells one configuration from another, whatever its seed and wherever its teacher is.

    Args:
        config: of a run.
        *parts: beginnings of the names of the settings that matter.
    """
    skipped = TEACHER_PATHS | {"train.seed"}
    settings = {k: v for k, v in fixed_settings(config).items() if k.startswith(parts) and k not in skipped}
    return hashlib.sha256(json.dumps([settings, teacher_digest(config)], sort_keys=True).encode()).hexdigest()[:16]


def _notes(plan: Plan) -> dict[str, Any]:
    return stored_json(plan.out / PLAN)


def _note(plan: Plan, **facts: Any) -> None:
    write_json(plan.out / PLAN, {**_notes(plan), **facts})


def _fit_to_seconds(plan: Plan, jobs: int, say: Say) -> tuple[Plan, dict[str, Any], dict[str, str]]:
    """Give every row the number of steps that fit into the budget on this machine, all its seeds the same.

    A step is timed before the first run, in the circumstances of the runs, and the number is kept: a schedule that
    follows the clock could not be repeated, and its learning rate would depend on what else the machine does.
    """
    seconds = plan.options.seconds
    assert seconds is not None
    known: dict[str, Any] = _notes(plan).get("measured", {})
    rows = {_key(runs[0]): runs for runs in plan.rows().values()}
    names = {key: f"{seconds:g} s, {key}, {_digest(runs[0].config, '')}" for key, runs in rows.items()}
    measured = {key: known[name] for key, name in names.items() if name in known}
    missing = [key for key in rows if key not in measured]
    tasks = [Task(measure, (rows[key][0].config, rows[key][0].folder, MEASURED_SHARE * seconds)) for key in missing]
    failed = {}
    for position, outcome in run_tasks(tasks, jobs):
        key = missing[position]
        if outcome.error:
            failed.update({run.folder.name: outcome.error for run in rows[key]})
            say(f"{key} failed: {outcome.error}")
            continue
        steps = max(1, int(seconds / outcome.value))
        measured[key] = known[names[key]] = {"seconds_per_step": outcome.value, "steps": steps}
        say(f"{key}: {1000 * outcome.value:.0f} ms per step, {steps} steps in {seconds:g} s")
        _note(plan, measured=known)
    runs = tuple(run.with_steps(measured[k]["steps"]) if (k := _key(run)) in measured else run for run in plan.runs)
    return replace(plan, runs=runs), measured, failed
