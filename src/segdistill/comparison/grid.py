"""Train and evaluate every run of a grid: what is done is kept, what is unfinished goes on, what fails is reported."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdistill._printing import number_of
from segdistill.comparison.cell import Cell
from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.mirrored import Mirrored
from segdistill.comparison.executors.task import Executor, Outcome, Task
from segdistill.comparison.plan import LABELS, Plan, load_plan
from segdistill.comparison.result import COMPARISON, counts_path, evaluation_path, gather
from segdistill.comparison.table import write_tables
from segdistill.comparison.watch import Watch
from segdistill.comparison.work import evaluate_teacher, measure, train_and_evaluate
from segdistill.data.check import quick_check
from segdistill.data.groups import sequences
from segdistill.data.walk import searched_once
from segdistill.engine.build import build_split, build_training
from segdistill.engine.config import Config, load_config
from segdistill.engine.epochs import in_steps
from segdistill.engine.lock import locked
from segdistill.engine.loop import TrainingStopped
from segdistill.engine.run_folder import CONFIG, SUMMARY, stored_json, write_json
from segdistill.engine.runtime import environment
from segdistill.engine.settings import check_same, settings_digest
from segdistill.engine.teacher import teacher_digest
from segdistill.methods import build_method
from segdistill.metrics._catalogue import need_teacher

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
    executor: Executor | None = None,
    say: Say = print,
    watch: Callable[[Watch], Any] | None = None,
) -> dict[str, Any]:
    """Train methods × students × data sets × seeds under one schedule, and hold them against the baseline.

    Args:
        source: as for `load_plan`, or a plan that is ready.
        overrides: `key.sub=value`.
        out: folder (default: `runs/compare_<file>`), or a URL. Finished runs in it are kept, unfinished ones go on.
        jobs: runs at a time on this machine.
        executor: where the runs are carried out instead, as `Ray()`.
        say: prints a line.
        watch: called before teachers, then before runs are trained, with what may be asked meanwhile how far they are.

    Returns:
        What `gather` returns; it is written to `compare.json`, `.csv`, `.md` and `.tex` in the folder.

    Raises:
        ValueError: with one line, if the configuration or the data are wrong or the teacher cannot be trained. A run
            that fails raises nothing: its line is in the result.
        TrainingStopped: if the process was asked to stop; the runs have saved where they are.
    """
    plan = source if isinstance(source, Plan) else load_plan(source, overrides, out)
    plan = _checked(plan)
    with _carried_out(plan, executor or Local(jobs)) as executor, locked(plan.out):
        return _compare(_share_threads(plan, executor), executor, say, watch or _nobody)


def _nobody(_watch: Watch) -> None:
    """Watch nothing."""


def run_only(plan: Plan, which: str, *, say: Say = print) -> None:
    """Train and evaluate one run of a comparison on this machine, while others may do the others; no table is made.

    Args:
        plan: of the comparison.
        which: the number of the run in `Plan.runs`, from 1, or `teacher` for what has to be trained before.
        say: prints a line.

    Raises:
        ValueError: with one line, if there is no such run, its teacher is not there yet, or it fails.
        TrainingStopped: if the process was asked to stop; the run has saved where it is.
    """
    if plan.options.budget == "seconds":
        raise ValueError("--only: seconds=N is measured on one machine for all runs; give train.steps instead")
    count = len(plan.runs)
    if which != "teacher" and not (which.isdecimal() and 1 <= int(which) <= count):
        raise ValueError(f"--only: expected teacher or a number from 1 to {count} (--list names the runs), got {which}")
    plan = _checked(plan)
    with _carried_out(plan, Local()) as executor:
        if which == "teacher":
            runs, split = _teachers(plan), _teachers_split(plan)
            if not runs:
                say("no teacher has to be trained before the runs")
        else:
            runs, split = [plan.runs[int(which) - 1]], plan.options.split
            missing = next((run.folder for run in _teachers(plan) if not is_done(run, None)), None)
            if missing is not None and (runs[0].config.distils or runs[0].guide is not None):
                raise ValueError(f"{missing} is not trained yet; the same command with --only teacher does it")
        for _, outcome in _finished(runs, executor, say, split, _nobody):
            if outcome.error:
                raise ValueError(outcome.error)


@contextmanager
def _carried_out(plan: Plan, executor: Executor) -> Iterator[Executor]:
    """The executor of a comparison, with the folder at hand where that is a URL; Ctrl-C becomes a line."""
    try:
        if plan.url is None:
            yield executor
        else:
            with Mirrored(executor, plan.url, plan.out, list(plan.teachers)) as mirrored:
                yield mirrored
    except KeyboardInterrupt:
        place = plan.url or plan.out
        raise TrainingStopped(f"stopped; the same command goes on with the runs in {place}") from None


def _teachers_split(plan: Plan) -> str | None:
    """The split on which teachers are evaluated when they are trained; None where their data may lack it."""
    datas = [_source(config) for config in {run.data: run.config for run in plan.runs}.values()]
    return plan.options.split if all(_source(config) in datas for config in plan.teachers.values()) else None


def _compare(plan: Plan, executor: Executor, say: Say, watch: Callable[[Watch], Any]) -> dict[str, Any]:
    for _, outcome in _finished(_teachers(plan), executor, say, _teachers_split(plan), watch):
        if outcome.error:
            raise ValueError(f"the teacher could not be trained: {outcome.error}")
    teachers = _evaluate_teachers(plan, executor)
    _check_guides(plan, teachers)
    measured: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if plan.options.budget == "seconds":
        plan, measured, failed = _fit_to_seconds(plan, executor, say)
    wanted = [run for run in plan.runs if run.folder.name not in failed]
    trained = {run.folder.name for run in wanted if (run.folder / SUMMARY).is_file()}
    at_a_time: dict[str, int] = _notes(plan).get("jobs", {})
    jobs = executor.jobs

    def begin(watched: Watch) -> None:
        begun = {run.name for run in watched.states() if run.state == "waiting"}
        at_a_time.update(dict.fromkeys(begun - trained, jobs))
        _note(plan, jobs=at_a_time)  # once for all: with each run that ends, its cost would grow as their square
        watch(watched)

    for run, outcome in _finished(wanted, executor, say, plan.options.split, begin):
        if outcome.error:
            failed[run.folder.name] = outcome.error
    most = max(at_a_time.get(run.folder.name, jobs) for run in plan.runs)
    facts = {"jobs": most, "measured": measured, "environment": environment()}
    result = gather(plan, teachers, failed, facts)
    write_json(plan.out / COMPARISON, result)
    write_tables(result, plan.out)
    return result


def _check_guides(plan: Plan, teachers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a metric that compares students with a teacher of other classes, before any of them is trained."""
    for run in plan.runs:
        if run.guide is not None and teachers[run.data]["miou"] is None:
            name = need_teacher(run.metrics)[0]
            raise ValueError(f"metrics: {name} needs a teacher that knows all classes of {run.data}; leave it out")


def _source(config: Config) -> dict[str, Any]:
    """Which images a run's are, however many of them have labels."""
    return config.data.model_dump(exclude=set(LABELS))


def _checked(plan: Plan) -> Plan:
    """The plan with epochs turned into steps, if its data are there.

    Raises:
        ValueError: as `_check_splits`.
    """
    for label, method in {run.method: run.config.method for run in plan.runs}.items():
        try:
            build_method(method)
        except ValueError as error:
            raise ValueError(f"method {label}: {error}") from None
    images, labelled = _check_splits(plan)
    runs = tuple(
        replace(run, config=in_steps(run.config, images[run.data]), labelled_images=labelled[run.data, run.labelled])
        for run in plan.runs
    )
    return replace(plan, runs=runs, teachers={folder: in_steps(config) for folder, config in plan.teachers.items()})


def _check_splits(plan: Plan) -> tuple[dict[str, int], dict[tuple[str, str | None], int]]:
    """Refuse data without the splits that are needed.

    Returns:
        The number of training images of each data set, and of those that have labels, of each share of them.
    """
    split, images, having = plan.options.split, {}, {}
    with searched_once():
        for (name, share), config in {(run.data, run.labelled): run.config for run in plan.runs}.items():
            training, labelled = build_training(config.data, distils=True)
            images[name] = len(training)
            having[name, share] = len(training if labelled is None else labelled)
            try:
                dataset = build_split(config.data, split)
                quick_check(dataset)
            except ValueError as error:
                hint = "; split=val compares on the validation split" if split == "test" else ""
                raise ValueError(f"{error}{hint}") from None
            if config.data.groups is not None:
                sequences(dataset.names, config.data.groups)
    return images, having


def _share_threads(plan: Plan, executor: Executor) -> Plan:
    """Give runs at a time a share of the CPU each, where their configuration does not say."""
    threads = executor.threads

    def shared(config: Config) -> Config:
        if threads is None or config.train.threads is not None:
            return config
        return config.model_copy(update={"train": config.train.model_copy(update={"threads": threads})})

    runs = tuple(replace(run, config=shared(run.config)) for run in plan.runs)
    return replace(plan, runs=runs, teachers={folder: shared(c) for folder, c in plan.teachers.items()})


def _teachers(plan: Plan) -> list[Cell]:
    return [
        Cell(config.data.name, config.student.name or "teacher", "teacher", config.train.seed, config, folder)
        for folder, config in plan.teachers.items()
    ]


def _finished(
    runs: Sequence[Cell], executor: Executor, say: Say, split: str | None, watch: Callable[[Watch], Any]
) -> Iterator[tuple[Cell, Outcome]]:
    """Train what is not done; each run with its outcome as it ends."""
    watched = Watch(runs, split)
    waiting: list[Cell] = []
    done: list[Cell] = []
    for run in runs:
        try:
            (done if is_done(run, split) else waiting).append(run)
        except ValueError as error:
            line = f"{error} (delete {run.folder} to start it afresh)"
            say(f"{run.folder.name} failed: {line}")
            watched.ended(run, Outcome(error=line))
            yield run, Outcome(error=line)
    if done:
        say(f"{len(done)} of {len(runs)} runs are there already")
    if waiting and not executor.prints:
        told = f"{number_of(len(waiting), 'run')}, {min(executor.jobs, len(waiting))} at a time"
        say(f"{told}; each prints into log.txt in its folder")
    for run in done:
        watched.ended(run, Outcome())
        yield run, Outcome()
    if waiting:
        watch(watched)
    tasks = []
    for run in waiting:
        log = None if executor.prints else run.folder / "log.txt"
        arguments = (run.config, run.folder, split, run.metrics, run.guide)
        tasks.append(Task(train_and_evaluate, arguments, log, run.folder))
    began = time.monotonic()
    for count, (position, outcome) in enumerate(executor.run(tasks), 1):
        run = waiting[position]
        watched.ended(run, outcome)
        left = (time.monotonic() - began) / count * (len(waiting) - count)
        ended = (
            f"failed: {outcome.error}" if outcome.error else f"{split or 'val'} mIoU {100 * (outcome.value or 0):.2f}"
        )
        say(f"{count}/{len(waiting)} {run.folder.name} {ended}; about {left / 60:.0f} min left")
        yield run, outcome


def is_done(run: Cell, split: str | None) -> bool:
    """Whether a run was trained and evaluated under its configuration, by all its metrics.

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
    if not all(file.is_file() for file in files):
        return False
    if split is None or not run.metrics:
        return True
    found = stored_json(evaluation_path(run.folder, split))
    alike = run.guide is None or found.get("teacher") == settings_digest(run.guide, "teacher.")
    return alike and set(run.metrics) <= set(found.get("metrics") or ())


def _evaluate_teachers(plan: Plan, executor: Executor) -> dict[str, dict[str, Any]]:
    """What the teacher reaches on each data set, in the very evaluation that the students get."""
    known = _notes(plan).get("teachers", {})
    wanted = plan.runs[0].metrics
    metrics = sorted(set(wanted) - set(need_teacher(wanted)))
    results, tasks = {}, []
    for data, config in {run.data: run.config for run in plan.runs if run.config.distils}.items():
        weights = teacher_digest(config)
        trained = {str(folder): folder.name for folder in plan.teachers}
        paths = [section.checkpoint or section.weights or section.name for section in config.teachers]
        names = [trained.get(str(path), str(path)) for path in paths]
        facts = {"run": " + ".join(names), "split": plan.options.split, "weights": weights}
        facts["settings"] = settings_digest(config, "data.", "eval.", "teacher.")
        results[data] = facts
        before = known.get(data, {})
        same = weights is not None and facts.items() <= before.items()
        if same and set(metrics) <= before.get("metrics", {}).keys():
            results[data] = before
        else:
            tasks.append((data, Task(evaluate_teacher, (config, plan.options.split, metrics))))
    for position, outcome in executor.run([task for _, task in tasks]):
        if outcome.error:
            raise ValueError(f"teacher: {outcome.error}")
        results[tasks[position][0]] |= outcome.value
    _note(plan, teachers=results)
    return results


def _notes(plan: Plan) -> dict[str, Any]:
    return stored_json(plan.out / PLAN)


def _note(plan: Plan, **facts: Any) -> None:
    write_json(plan.out / PLAN, {**_notes(plan), **facts})


def _fit_to_seconds(plan: Plan, executor: Executor, say: Say) -> tuple[Plan, dict[str, Any], dict[str, str]]:
    """Give every row the number of steps that fit into the budget on this machine, all its seeds the same.

    A step is timed before the first run, in the circumstances of the runs, and the number is kept: a schedule that
    follows the clock could not be repeated, and its learning rate would depend on what else the machine does.
    """
    seconds = plan.options.seconds
    assert seconds is not None
    known: dict[str, Any] = _notes(plan).get("measured", {})
    rows = {runs[0].told: runs for runs in plan.rows().values()}
    names = {key: f"{seconds:g} s, {key}, {settings_digest(runs[0].config, '')}" for key, runs in rows.items()}
    measured = {key: known[name] for key, name in names.items() if name in known}
    missing = [key for key in rows if key not in measured]
    tasks = [Task(measure, (rows[key][0].config, rows[key][0].folder, MEASURED_SHARE * seconds)) for key in missing]
    failed = {}
    for position, outcome in executor.run(tasks):
        key = missing[position]
        if outcome.error:
            failed.update({run.folder.name: outcome.error for run in rows[key]})
            say(f"{key} failed: {outcome.error}")
            continue
        steps = max(1, int(seconds / outcome.value))
        measured[key] = known[names[key]] = {"seconds_per_step": outcome.value, "steps": steps}
        say(f"{key}: {1000 * outcome.value:.0f} ms per step, {steps} steps in {seconds:g} s")
        _note(plan, measured=known)
    runs = tuple(run.with_steps(measured[k]["steps"]) if (k := run.told) in measured else run for run in plan.runs)
    return replace(plan, runs=runs), measured, failed
