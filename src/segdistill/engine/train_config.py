"""`train:` — optimisation, precision, what is kept when."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Owner, Section, owned_by


class TrainConfig(Section):
    """`train:` — optimiser, learning rate, precision, checkpoints and logging."""

    owners: ClassVar[Mapping[str, Owner]] = {
        "momentum": owned_by("optimizer", "sgd"),
        "nesterov": owned_by("optimizer", "sgd"),
        "betas": owned_by("optimizer", "adamw"),
        "power": owned_by("schedule", "poly"),
        "milestones": owned_by("schedule", "step"),
        "gamma": owned_by("schedule", "step"),
        "min_lr": owned_by("schedule", "poly", "cosine", "step"),
    }

    steps: int = Field(1000, gt=0)
    """Number of optimiser steps in the whole run; give either `steps` or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Number of passes over the training images, instead of `steps`; the run converts it into steps of
    `data.batch_size` images. Images without labels count, too."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, as in the papers, or `adamw`. On CUDA the fused version is used."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the start, after the warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of AdamW: of the mean of the gradients, and of the mean of their squares."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of all parameters; 5e-4 in SKD, IFVD and OpenMMLab (FAKD), 1e-4 in CIRKD (I2CKD), 1e-5 in SSTKD."""
    norm_decay: bool = True
    """Whether weight decay also applies to normalisation layers, biases and a transformer's position embeddings;
    `false` excludes them, as is usual with AdamW."""
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Factors on the learning rate of single parts, such as `{backbone: 0.1, head: 10}`. A part is `backbone`; `head`,
    which is the rest of the student; `method`, the method's own layers; or a path in the student such as `decoder` or
    `backbone.body.layer4`, where `*` stands for any text. If several parts match, the most specific one counts."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the learning rate from each block of the backbone to the block before it, such as 0.75, as for BEiT. If
    left out, all blocks have the same rate. It is multiplied with `lr_factors`."""
    schedule: Literal["poly", "cosine", "step", "constant"] = "poly"
    """How the learning rate goes from `lr` to `min_lr`: `poly` with the exponent `power`, `cosine` along half a cosine
    wave, `step` by the factor `gamma` at each of `milestones`; `constant` keeps it. The critic of an adversarial method
    follows the same schedule."""
    power: float = Field(0.9, ge=0)
    """Exponent of the polynomial schedule: the learning rate is `min_lr + (lr − min_lr) · (1 − step/steps)^power`."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.6, 0.8], min_length=1)
    """For the schedule `step`: shares of the training after which the learning rate is multiplied by `gamma`."""
    gamma: float = Field(0.1, gt=0, le=1)
    """For the schedule `step`: factor on the learning rate at each of `milestones`."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the run; 1e-4 in OpenMMLab's schedules. `lr_factors` and `layer_decay` apply to it,
    too."""
    warmup: int = Field(0, ge=0)
    """Number of steps in which the learning rate rises linearly from 0; give either `warmup` or `warmup_epochs`."""
    warmup_epochs: float | None = Field(None, ge=0)
    """Length of the warm-up in passes over the training images, instead of `warmup`."""
    aux_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's losses (those of `supervised`), if the student has such a head; 0 leaves the head
    untrained."""
    clip: float | None = Field(None, gt=0)
    """Largest allowed Euclidean norm of the gradient; a longer gradient is scaled down to it. If left out, gradients
    are not clipped."""
    accumulate: int = Field(1, gt=0)
    """Number of micro-batches that a batch is split into, for batches that do not fit into memory; they are computed
    one after the other, and their gradients are added to one step. Batch norm, and losses that compare images with one
    another, see one micro-batch at a time."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the student's weights, such as 0.999. If set, the average is validated and
    saved."""
    sync_batchnorm: bool = False
    """Whether batch norm of the student, of the method's layers and of its critic uses the statistics of the images of
    all processes, as one process with the whole batch would. Otherwise each process uses the statistics of its own
    images, and the running statistics of the first process are saved. No effect in a single process."""
    shard: Literal["none", "optimizer"] = "none"
    """`optimizer`: each process stores the optimiser's state (momentum, AdamW's averages) only for its own part of the
    parameters. Results and checkpoints are the same, bit by bit. The optimiser of a critic is not sharded. No effect in
    a single process."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format in which the networks compute; losses are always computed in float32 at least. `auto` is bf16 if
    the device supports it, else fp32."""
    channels_last: bool = True
    """Whether images and maps are stored in memory in channels-last order, which is faster on most devices."""
    compile: bool = False
    """Whether the networks are compiled between their taps: minutes at the start, less time per step afterwards."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` uses a GPU if there is one."""
    threads: int | None = Field(None, gt=0)
    """Number of CPU threads; if left out, torch's default."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random numbers: initial weights, order of the images, augmentation, dropout, the methods' samples."""
    eval_every: int = Field(0, ge=0)
    """Number of steps between validations; 0 validates only at the end. The best student on the validation split is
    kept."""
    save_every: int = Field(200, ge=0)
    """Number of steps between checkpoints, from which a stopped run is resumed. Each validation writes a checkpoint,
    too; with 0 only validations do."""
    log_every: int = Field(10, gt=0)
    """Number of steps between lines of `metrics.jsonl`."""
    gradient_samples: int = Field(20, ge=0)
    """How often in the whole run the gradient of each single term is measured, for the report; 0 means never. With
    `compile` it is not measured."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files as well (extra `track`)."""

    @pydantic.model_validator(mode="after")
    def _check_length(self) -> "TrainConfig":
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(f"steps is {self.steps} and epochs {self.epochs:g}; give one of them")
        if self.warmup_epochs is not None and self.warmup:
            raise ValueError(f"warmup is {self.warmup} and warmup_epochs {self.warmup_epochs:g}; give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _check_rates(self) -> "TrainConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, above lr, {self.lr:g}; it is where the learning rate ends")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones: expected rising shares such as [0.6, 0.8], got {self.milestones}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: of SGD with momentum, and momentum is 0; set it, or leave nesterov out")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _write(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the steps while they are not known, so that what is written can be read again."""
        written: dict[str, Any] = handler(self)
        if self.epochs is not None:
            del written["steps"]
        return written
