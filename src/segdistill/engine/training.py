"""What a run holds, and what it does with its folder: networks, optimisers, data, checkpoints, validation."""

import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segdistill.data import SegmentationDataset
from segdistill.data.check import quick_check
from segdistill.data.sampler import parted, train_loader
from segdistill.data.subsets import Subset
from segdistill.data.transforms import TrainTransform
from segdistill.data.walk import searched_once
from segdistill.engine import build
from segdistill.engine.checkpoint import not_finite_tensors, save_checkpoint
from segdistill.engine.class_weights import balance
from segdistill.engine.clock import Clock, Waited
from segdistill.engine.config import Config
from segdistill.engine.distiller import Distiller
from segdistill.engine.epochs import in_steps
from segdistill.engine.evaluate import evaluate
from segdistill.engine.faults import not_finite
from segdistill.engine.gradients import term_gradients
from segdistill.engine.optim import build_optimizer, schedule
from segdistill.engine.record import Recorder
from segdistill.engine.run_folder import STUDENT, SUMMARY, write_json
from segdistill.engine.runtime import Runtime, peak_memory, synchronize
from segdistill.engine.sharding import Collected, Shards
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.engine.sync_batchnorm import synchronise
from segdistill.engine.teacher import build_teacher, tell_range
from segdistill.engine.teacher_cache import Cache, cached_taps, fill, open_cache
from segdistill.engine.teacher_views import AVERAGED, Ensemble, members
from segdistill.methods import build_method
from segdistill.models.stats import model_stats
from segdistill.taps import Taps


class Training:
    """Everything that a run holds: networks, optimisers, data, and its folder.

    Args:
        config: the loaded configuration.
        run: device, precision, processes.
        folder: of the run.
        student: the user's own network, or None.
        teacher: likewise.
    """

    recorder: Recorder
    cache: Cache | None = None
    _batches: Waited | None = None
    _finite_at: int | None = None

    def __init__(
        self,
        config: Config,
        run: Runtime,
        folder: Path,
        *,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
    ):
        # What `auto` means is decided once, so that a resumed run computes as it began.
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": run.precision})})
        with searched_once():
            self.train_set, self.labelled = build.build_training(config.data, distils=config.distils)
            self.val_set = build.build_split(config.data, "val")
        some = config.data.labelled is not None
        whole = self.train_set.dataset if some and isinstance(self.train_set, Subset) else self.train_set
        config = in_steps(config, len(whole))
        cfg = config.train
        self.config, self.cfg, self.run, self.folder = config, cfg, run, folder
        checked = self.train_set if self.labelled is None else Subset(self.train_set, self.labelled)
        for split, dataset in (("train", checked), ("val", self.val_set)):
            for line in quick_check(dataset):
                if run.main:
                    print(f"data, {split}: {line}", file=sys.stderr, flush=True)
        if some and run.main:
            bare = len(checked) < len(whole)
            others = "; a student alone learns nothing from the others" if bare and not config.distils else ""
            line = f"{len(checked)} of {len(whole)} images have labels{others}"
            print(f"data, train: {line}", file=sys.stderr, flush=True)
        mixed = config.data.augment is not None and config.data.augment.classmix > 0  # which brings labels into them
        if config.data.unlabelled is not None and not config.distils and not mixed and run.main:
            line = "method none learns nothing from these images, but batch norm sees them; leave them out"
            print(f"data.unlabelled: {line}", file=sys.stderr, flush=True)
        classes = len(self.train_set.classes)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        self.layout = layout

        torch.manual_seed(cfg.seed)  # the same first weights whatever the method
        tapped = build.build_student(config, classes, student)
        self.teacher = build_teacher(config, self.train_set.classes, teacher)
        if self.teacher is not None:
            if run.main:
                for member in members(self.teacher):
                    tell_range(getattr(member.network, "card", None) or {}, self.train_set, "the teacher")
            self.teacher.to(run.device, memory_format=layout)  # type: ignore[call-overload]
        supervised = build.build_supervised(config.supervised, self.train_set.classes, self.dry_size())
        method = build_method(config.method)
        self.distiller = Distiller(tapped, method, aux_weight=cfg.aux_weight, supervised=supervised)
        self.distiller.to(run.device)
        torch.manual_seed(cfg.seed + 1)
        images = torch.rand(1, 3, *self.dry_size(), device=run.device)
        batch = config.data.images_per_step // (cfg.accumulate * run.world)
        self.distiller.adapt(self.teacher, images, classes=classes, batch=batch)
        self.distiller.to(memory_format=layout)
        if cfg.sync_batchnorm and run.world > 1:
            synchronise(self.distiller, run.device)
        self.method = self.distiller.method
        self.unlabelled = build.build_unlabelled(config.data)
        run.behind = self._behind()
        if isinstance(self.teacher, Ensemble) and self.method.teacher_taps().isdisjoint(AVERAGED) and run.main:
            line = "the methods read features alone, which are those of the first network, of the image as it is"
            print(f"teacher: {line}; leave the other networks and views out", file=sys.stderr, flush=True)
        self.cached = cached_taps(config, self.method.teacher_taps())
        self.network = tapped.network
        self.critic = self.method.make_critic()
        if self.critic is not None:
            self.critic.to(run.device)
            if cfg.sync_batchnorm and run.world > 1:
                synchronise(self.critic, run.device, second_derivative=True)

        self.optimizer = build_optimizer(self.distiller, cfg)
        self.shards = Shards(self.optimizer) if cfg.shard == "optimizer" and run.world > 1 else None
        self.critic_optimizer = None if self.critic is None else self.method.make_critic_optimizer(self.critic)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=cfg.precision == "fp16")
        self.average = None
        if cfg.ema is not None:
            mean = get_ema_multi_avg_fn(cfg.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.network, multi_avg_fn=mean, use_buffers=True)
        if cfg.compile:
            tapped.compile_between_taps()
            if self.teacher is not None:
                self.teacher.compile_between_taps()
        self.model: nn.Module = self.distiller
        if run.world > 1:
            ids = [run.device.index] if run.device.type == "cuda" else None
            # A method's buffers (queues, covariances) are the same on all processes by themselves, and may be large.
            own = [f"method.{name}" for name, _ in self.method.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
                self.distiller, own
            )
            self.model = DistributedDataParallel(self.distiller, device_ids=ids)
        self.done, self.best, self.best_step = 0, -1.0, 0
        self.clock = Clock()
        self._infinite = set(not_finite_tensors(self.parts))  # some are from the start, as masks are

    def due(self, every: int, done: int | None = None) -> bool:
        """Whether something that happens every so many steps (0: never) happens now; the last step always counts."""
        done = self.done if done is None else done
        return done == self.cfg.steps or (every > 0 and done % every == 0)

    @property
    def to_be_saved(self) -> bool:
        """Whether a checkpoint is due now: of its own, or with a validation."""
        return self.due(self.cfg.save_every) or self.due(self.cfg.eval_every)

    @property
    def transform(self) -> TrainTransform:
        """How training images are augmented."""
        return build.build_transform(self.config.data, getattr(self.network, "mean", None))

    def weigh_classes(self) -> None:
        """With `class_weights: balanced`: count the labels of the training images, unless the run has done so.

        Raises:
            ValueError: if there is none.
            TrainingStopped: if the process was asked to stop.
        """
        if self.config.supervised.class_weights == "balanced":
            balance(self)

    def fill_cache(self) -> None:
        """With `teacher.cache`: see to it that every view's taps are on the disk; the teacher leaves the device.

        Raises:
            ValueError: if it cannot be used or made, or was filled by another teacher, from other data or otherwise.
            TrainingStopped: if the process was asked to stop.
        """
        if self.cached and self.teacher is not None:
            self.cache = open_cache(self)
            fill(self, self.cache)
            self.teacher.to("cpu")
        elif self.config.distils and self.config.cached_teacher is not None:
            self.recorder.say("teacher.cache: nothing is kept, as the methods read nothing of the teacher's images")

    def batches(self) -> Waited:
        """Micro-batches from the step where the run stands, each with the teacher's taps if they are cached."""
        data, cfg, run = self.config.data, self.cfg, self.run
        section = self.config.cached_teacher
        loader = train_loader(
            self.train_set,
            self.transform,
            batch_size=data.batch_size,
            steps=cfg.steps,
            start=self.done,
            seed=cfg.seed,
            workers=data.workers,
            accumulate=cfg.accumulate,
            rank=run.rank,
            world=run.world,
            labelled=self.labelled,
            labelled_batch=data.labelled_per_batch,
            unlabelled=self.unlabelled,
            unlabelled_batch=data.unlabelled.batch_size if data.unlabelled is not None else 0,
            device=run.device,
            views=section.cache_views if self.cached and section is not None else None,
            recall=None if self.cache is None else self.cache.read,
            mixing=build.build_mixing(data),
        )
        self._batches = Waited(loader)
        return self._batches

    def close(self) -> None:
        """End the progress line and the processes that load images."""
        self.recorder.close()
        if self._batches is not None:
            self._batches.close()

    def _behind(self) -> tuple[int, ...]:
        """Images of a process's micro-batch that stand behind the others: by turns of their own, in their order."""
        data, own = self.config.data, self.config.data.labelled_per_batch
        others = data.batch_size - own if parted(self.train_set, self.labelled, own) and own is not None else 0
        more = 0 if data.unlabelled is None else data.unlabelled.batch_size
        return tuple(count // (self.cfg.accumulate * self.run.world) for count in (others, more))

    def dry_size(self) -> tuple[int, int]:
        """The size of the dry run: that of training, since some methods fit layers or maps to it."""
        data = self.config.data
        size = data.crop or data.size
        return size if size is not None else tuple(self.train_set[0][0].shape[-2:])  # type: ignore[return-value]

    def analyse(self, terms: Mapping[str, Tensor], student: Taps, teacher: Taps, target: Tensor) -> dict[str, float]:
        """What is shown of a step that is about to be recorded, of its first micro-batch; nothing on other steps.

        Args:
            terms: of the micro-batch, with their graph.
            student: its taps.
            teacher: its taps.
            target: (N,h,w) labels.

        Returns:
            `analysis_<figure>` as the methods say, and on a sample of steps `gradient_<term>` and `cosine_<term>`, as
            `term_gradients` finds them.
        """
        if not self.due(self.cfg.log_every, self.done + 1):
            return {}
        with torch.no_grad():
            figures = self.method.analysis({name: tap.detach() for name, tap in student.items()}, teacher, target)
        shown = {f"analysis_{name}": value for name, value in figures.items() if math.isfinite(value)}
        if len(terms) > 1 and self._sampled(self.done + 1):
            synchronize(self.run.device)
            began = time.monotonic()
            found = term_gradients(terms, self.trained, scale=self.scaler.get_scale())
            shown |= {f"gradient_{name}": norm for name, (norm, _) in found.items() if math.isfinite(norm)}
            shown |= {f"cosine_{name}": cosine for name, (_, cosine) in found.items() if cosine is not None}
            self.clock.pause(time.monotonic() - began)
        return shown

    def _sampled(self, done: int) -> bool:
        """Whether a recorded step is one of those, spread over the whole run, on which gradients are looked at."""
        cfg = self.cfg
        before = done - ((done - 1) % cfg.log_every + 1)  # the recorded step before this one
        samples = 0 if cfg.compile else cfg.gradient_samples  # a compiled graph may be used once: it reuses its memory
        return done * samples // cfg.steps > before * samples // cfg.steps

    @property
    def trained(self) -> list[nn.Parameter]:
        """The student's weights that are trained, in which gradients of terms are taken."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def record(self, terms: Mapping[str, float], shown: Mapping[str, float], norm: float, batches: Waited) -> None:
        """Record this step's terms, and the speed since the last record.

        Args:
            terms: of this step.
            shown: what `analyse` found.
            norm: of the gradient.
            batches: knows how long it was waited for.
        """
        steps, seconds = self.done - self.recorder.last, max(self.clock.lap(), 1e-9)
        self.recorder.step(
            self.done,
            {
                "loss": sum(value for name, value in terms.items() if not name.startswith("critic_")),
                **terms,
                **shown,
                "lr": self.cfg.lr * schedule(self.done - 1, self.cfg),
                "grad_norm": norm,
                "images_per_s": steps * self.config.data.batch_size / seconds,
                "data_wait": batches.take() / seconds,
                "memory_mb": peak_memory(self.run.device) / 2**20,
            },
        )

    @property
    def deliverable(self) -> nn.Module:
        """The network that is validated and saved: the running average where there is one."""
        return self.network if self.average is None else self.average.module

    def _evaluate(self, network: nn.Module, dataset: SegmentationDataset, run: Runtime) -> dict[str, Any]:
        data = self.config.data
        result = evaluate(
            network,
            dataset,
            protocol=self.config.eval.build(),
            size=data.resize,
            batch_size=data.eval_batch_size,
            workers=data.workers,
            run=run,
        )
        return {**result, "protocol": self.config.eval.describe()}

    def validate(self) -> None:
        """Evaluate on the validation split; the best student so far becomes `student.safetensors`."""
        self._check_finite()
        began = time.monotonic()
        self.run.share(self.deliverable)  # each process has its own statistics of batch norm; the first one's are saved
        result = self._evaluate(self.deliverable, self.val_set, self.run)
        score = -1.0 if result["miou"] is None else result["miou"]
        better = score > self.best or not self.best_step
        if better:
            self.best, self.best_step = score, self.done
        if self.run.main:
            self.recorder.validation(self.done, result, better)
            if better:
                save_student(self.folder / STUDENT, self.deliverable, self._card(result))
        self.clock.pause(time.monotonic() - began)

    def _card(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return make_card(
            self.deliverable,
            self.train_set.classes,
            self.train_set.palette,
            miou=result["miou"],
            step=self.done,
            data=self.config.data.name,
            size=self.config.data.size,
            protocol=self.config.eval.describe(),
            image_range=getattr(self.train_set, "image_range", None),
            method=self.config.method_names,
        )

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds: name → anything with a `state_dict`, or None."""
        return {
            "distiller": self.distiller,
            "optimizer": self.optimizer,
            "scaler": self.scaler if self.scaler.is_enabled() else None,
            "average": self.average,
            "critic": self.critic,
            "critic_optimizer": self.critic_optimizer,
        }

    def _check_finite(self) -> None:
        """Refuse to keep weights, statistics or an optimiser that overflowed: what is in the folder is good."""
        if self._finite_at == self.done:
            return
        bad = [name for name in not_finite_tensors(self.parts) if name not in self._infinite]
        if self.run.any(bool(bad)):
            name = bad[0] if bad else "a tensor of another process"
            raise not_finite(name, "not finite", self.done, self.folder)
        self._finite_at = self.done

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            TrainingStopped: if a weight is not finite; the checkpoint stays as it was.
        """
        self._check_finite()
        parts = self.parts
        if self.shards is not None:
            parts["optimizer"] = Collected(self.shards.whole())
        if self.run.main:
            self.recorder.sync()
            facts = {"step": self.done, "seconds": self.clock.total(), "best": self.best, "best_step": self.best_step}
            save_checkpoint(self.folder, parts, facts)
        self.run.barrier()

    def finish(self) -> dict[str, Any]:
        """Evaluate the best student in float32 and write `summary.json`."""
        run = self.run
        if not self.best_step:
            self.validate()
        run.barrier()
        own = None if hasattr(self.network, "spec") else self.deliverable
        best = load_student(self.folder / STUDENT, own, allow_code=True)  # the run's own configuration named it
        exact = Runtime(run.device, "fp32", run.rank, run.world)
        result = self._evaluate(best.to(memory_format=self.layout), self.val_set, exact)
        result.pop("confusion")
        summary = {
            **result,
            "split": "val",
            **_stats(best),
            "steps": self.done,
            "best_step": self.best_step,
            "seconds": round(self.clock.total(), 2),
            "peak_memory": peak_memory(run.device),
            "student": self.config.student.name or type(self.network).__name__,
            "method": self.config.method_names,
            "seed": self.cfg.seed,
        }
        if run.main:
            write_json(self.folder / SUMMARY, summary)
        return summary


def _stats(network: nn.Module) -> dict[str, Any]:
    params = sum(p.numel() for p in network.parameters())
    with suppress(Exception):  # an operation of the user's own that has no shape function leaves the FLOPs unknown
        return model_stats(network)
    return {"params": params, "flops": None, "flops_size": None}
