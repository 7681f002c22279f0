"""The whole data flow on one page.

images → teacher taps, student taps → named loss terms → sum → optimiser → metrics → run folder.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segdistill.engine.clock import Waited
from segdistill.engine.config import Config, load_config
from segdistill.engine.distiller import frozen
from segdistill.engine.faults import TrainingStopped as TrainingStopped
from segdistill.engine.faults import kept, known_fault
from segdistill.engine.figures import Figures, Watch, step_if
from segdistill.engine.lock import locked
from segdistill.engine.opening import open_run
from segdistill.engine.optim import schedule, set_rate
from segdistill.engine.run_folder import CannotWriteError
from segdistill.engine.runtime import Runtime, runtime
from segdistill.engine.teacher import observe
from segdistill.engine.training import Training
from segdistill.methods import Method
from segdistill.taps import Tapped, Taps


def distill(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    override: bool = False,
) -> dict[str, Any]:
    """Train a student, alone or from a teacher, as a configuration says.

    Args:
        config: a YAML file, a mapping, or a loaded configuration.
        overrides: `key.sub=value`, as on the command line.
        student: the user's own network instead of the configured one: RGB images in 0…1 → logits.
        teacher: likewise, already trained.
        out: run folder (default: `runs/<data>_<student>_<method>_seed<seed>`).
        resume: go on from the run folder's checkpoint, bit by bit as if it had never stopped; "auto" starts or goes on,
            whichever fits.
        override: whether a run that goes on may change its learning rate, clipping, precision and other settings of the
            optimisation; the folder keeps account of it.

    Returns:
        The summary, as in `summary.json`: figures of the best student on the validation split, and costs.

    Raises:
        ValueError: with one line, on anything that is wrong with the configuration, the data or the run folder.
        TrainingStopped: if a term, a gradient or a weight is not finite, memory or the disk did not suffice, or the
            process was asked to stop.
    """
    if override and not resume:
        raise ValueError("--override changes the settings of a run that goes on; it needs --resume")
    config = load_config(config, overrides)
    folder = Path(out) if out is not None else default_folder(config, student)
    with runtime(config.train.device, config.train.precision, config.train.threads) as run:
        training = Training(config, run, folder, student=student, teacher=teacher)
        with locked(folder) if run.main else nullcontext():
            finished = open_run(training, resume, override=override)
            try:
                if finished is not None:
                    return finished
                train(training)
                return training.finish()
            except CannotWriteError as error:
                fault = f"{error}{'' if resume == 'auto' else ' with --resume auto'}"
            except (RuntimeError, MemoryError, OSError) as error:
                known = known_fault(error)
                if known is None:
                    raise
                fault = known
            finally:
                training.close()
        # Out here the error and its frames are gone, and with them the loader: torch reports one that lost a worker
        # again and again, wherever the program is.
        raise TrainingStopped(f"{fault}; {kept(folder)}")


def train(training: Training) -> None:
    """Train from the step where the run stands to the last one: the four parts of each step, in order.

    Args:
        training: networks, optimisers and data of the run.

    Raises:
        TrainingStopped: if a term or a gradient is not finite, or the process was asked to stop.
    """
    cfg = training.cfg
    training.weigh_classes()  # with class_weights: balanced, whose labels are counted once
    training.fill_cache()  # with teacher.cache: the teacher sees each view once, and never again
    batches, watch = training.batches(), Watch()
    training.model.train()
    training.recorder.begin()
    for step in range(training.done, cfg.steps):
        training.run.seed(cfg.seed, step)
        set_rate((training.optimizer, training.critic_optimizer), schedule(step, cfg))
        parts = list(islice(batches, cfg.accumulate))
        figures, shown = _learn(training, parts, step / cfg.steps)  # 1. images → taps → terms; 2. terms → gradients
        _update(training, figures)  # 3. gradients → weights, if they and the terms are finite
        training.done = step + 1
        watch.look(figures, now=training.due(cfg.log_every) or training.to_be_saved)
        _keep(training, figures, shown, batches, watch)  # 4. numbers → metrics.jsonl, validation, checkpoint


def _learn(training: Training, parts: Sequence[tuple[Any, ...]], progress: float) -> tuple[Figures, dict[str, float]]:
    """Add up the gradients of a step's micro-batches; returns each term's mean, and what is shown of the first one."""
    run, share = training.run, 1 / len(parts)
    shown: dict[str, float] = {}
    history: list[dict[str, Tensor]] = []
    labelled = _labelled([target for _, target, *_ in parts], training)
    for number, (images, target, *stored) in enumerate(parts, start=1):
        images = images.to(run.device, memory_format=training.layout, non_blocking=True)
        target = target.to(run.device, non_blocking=True)
        with _averaging(training.model, last=number == len(parts)):
            terms, student, teacher = forward(training, images, target, progress, labelled, *stored)
            if not history:
                shown = training.analyse(terms, student, teacher, target)
            terms |= backward(training, terms, student, teacher, share)
        history.append({name: term.detach().float() for name, term in terms.items()})
    return Figures(history, training.done, run, training.folder), shown


def _update(training: Training, figures: Figures) -> None:
    """Step the student with the method's layers, then the critic, then the average, if the figures are finite."""
    critic, scaler = training.critic, training.scaler
    _step(training.optimizer, training.distiller, figures, "the student", scaler=scaler, clip=training.cfg.clip)
    if critic is not None and training.critic_optimizer is not None:
        training.run.average_gradients(critic)
        _step(training.critic_optimizer, critic, figures, "the critic")
    if training.average is not None:
        training.average.update_parameters(training.network)


def _keep(training: Training, figures: Figures, shown: Mapping[str, float], batches: Waited, watch: Watch) -> None:
    """Record, validate and save what is due after a step; end the run if it was asked to stop."""
    cfg, run = training.cfg, training.run
    if training.due(cfg.log_every):
        training.record(run.mean(figures.terms), shown, figures.norm, batches)
    training.recorder.alive(training.done)
    if training.due(cfg.eval_every):
        training.validate()
    stop = watch.stopping(run)
    if stop or training.to_be_saved:
        figures.read()
        training.save()
    if stop:
        raise TrainingStopped(f"stopped after step {training.done}; go on with --resume --out {training.folder}")


class Learner(Protocol):
    """What a step needs: who learns from whom, and how it is computed."""

    model: nn.Module
    """The distiller, as it is or wrapped for several processes."""
    method: Method
    teacher: Tapped | None
    critic: nn.Module | None
    run: Runtime
    scaler: torch.amp.GradScaler


def forward(
    learner: Learner,
    images: Tensor,
    target: Tensor,
    progress: float,
    labelled: Tensor | None = None,
    stored: Taps | None = None,
) -> tuple[dict[str, Tensor], Taps, Taps]:
    """Run teacher and student on a batch and compute the loss terms (`Distiller.forward`).

    The networks run in the run's precision, the losses in float32 at least.

    Args:
        learner: who learns from whom.
        images: (N,3,H,W) in 0…1.
        target: (N,H,W) int64 labels, 255 = ignored.
        progress: share of the training that is done.
        labelled: mean mass of labels in the parts of the step's batch; None: this is the whole batch.
        stored: what the teacher gave for these images before; it does not run then.

    Returns:
        The weighted terms by name, and the taps of student and teacher that they were computed from.
    """
    with learner.run.autocast(), frozen(learner.critic):
        seen = observe(learner.teacher, images, learner.method.teacher_taps(), stored)
        terms, student, seen = learner.model(images, target, seen, progress, learner.critic, labelled)
    return terms, student, seen


def backward(
    learner: Learner, terms: Mapping[str, Tensor], student: Taps, teacher: Taps, share: float = 1.0
) -> dict[str, Tensor]:
    """Add the gradients of a micro-batch's terms to the student's, and those of the critic's own loss to the critic's.

    Args:
        learner: who learns from whom.
        terms: what `forward` returned.
        student: its taps.
        teacher: its taps.
        share: of the micro-batch in the step; it scales all gradients.

    Returns:
        The critic's terms, `critic_<name>`; none where there is no critic.
    """
    loss = torch.stack(list(terms.values())).sum() * share
    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if learner.critic is None:
        return {}
    detached = {name: tap.detach() for name, tap in student.items()}
    critic_terms = learner.method.critic_loss(learner.critic, detached, teacher)
    critic_loss: Tensor = torch.stack(list(critic_terms.values())).sum() * share
    critic_loss.backward()  # type: ignore[no-untyped-call]
    return {f"critic_{name}": term for name, term in critic_terms.items()}


def _labelled(targets: Sequence[Tensor], training: Training) -> Tensor:
    """Mean mass of labels in the micro-batches of a step, those of all processes."""
    run = training.run
    count = torch.stack([training.distiller.supervised.mass(target) for target in targets]).sum()
    return run.sum(count.to(run.device, non_blocking=True)) / (len(targets) * run.world)


def _averaging(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Let gradients be averaged over processes once in a step, in the backward pass of its last micro-batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def _step(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    figures: Figures,
    whose: str,
    *,
    scaler: torch.amp.GradScaler | None = None,
    clip: float | None = None,
) -> None:
    """One optimiser step, if the terms and the gradient are finite."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip or math.inf)
    scaling = scaler is not None and scaler.is_enabled()
    figures.add(f"{whose}'s gradient", norm, fatal=not scaling)
    if scaler is not None and scaling:  # it skips a gradient that is not finite by itself, and lowers its scale
        scaler.step(optimizer)
        scaler.update()
    elif figures.behind:
        step_if(figures.finite, optimizer)
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def default_folder(config: Config, student: nn.Module | None = None) -> Path:
    """Where a run goes if nothing else is said.

    Args:
        config: the configuration.
        student: the user's own network, or None.
    """
    name = config.student.name or Path(config.student.checkpoint or type(student).__name__.lower()).stem
    return Path("runs") / "_".join([config.data.name, name, *config.method_names, f"seed{config.train.seed}"])
