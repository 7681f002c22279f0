"""`train:` — optimisation, precision, what is kept when."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Section


class TrainConfig(Section):
    """`train:` — optimisation, precision, what is kept when."""

    steps: int = Field(1000, gt=0)
    """Steps of the optimiser in the whole run; give either these or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training images instead; the run turns them into steps of `data.batch_size` images."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, as in the papers, or `adamw`. On CUDA it is the fused one."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the start, after the warm-up."""
    momentum: float = Field(0.9, ge=0)
    """Of SGD."""
    nesterov: bool = False
    """Whether SGD looks ahead along its momentum."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW: decay of the mean of gradients, and of that of their squares."""
    weight_decay: float = Field(5e-4, ge=0)
    """Of all weights; 5e-4 in SKD, IFVD and OpenMMLab (FAKD), 1e-4 in CIRKD (I2CKD), 1e-5 in SSTKD."""
    norm_decay: bool = True
    """Whether weight decay counts for norms, biases and a transformer's embeddings of positions, too; `false` leaves
    them out, as is usual with AdamW."""
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Factors on the learning rate by part, such as `{backbone: 0.1, head: 10}`: `backbone`; `head`, which is all else
    of the student; `method`, the method's own layers; or a path in the student such as `decoder` or
    `backbone.body.layer4`, with `*` for any text. Of several that fit, the most exact one counts."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the learning rate from each block of the backbone to the one before it, as for BEiT, such as 0.75;
    left out, all learn alike. It multiplies with `lr_factors`."""
    schedule: Literal["poly", "cosine", "step", "constant"] = "poly"
    """How the learning rate goes from `lr` to `min_lr`: `poly` by `power`, `cosine` along half a wave, `step` by
    `gamma` at each of `milestones`; `constant` stays. The critic of an adversarial method follows."""
    power: float = Field(0.9, ge=0)
    """Of the polynomial schedule: the learning rate is `min_lr + (lr − min_lr) · (1 − step/steps)^power`."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.6, 0.8])
    """Of the schedule `step`: shares of the training after which the learning rate is multiplied by `gamma`."""
    gamma: float = Field(0.1, gt=0, le=1)
    """Of the schedule `step`."""
    min_lr: float = Field(0.0, ge=0)
    """Where the learning rate ends; 1e-4 in OpenMMLab's schedules. `lr_factors` and `layer_decay` count for it, too."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0; give either these or `warmup_epochs`."""
    warmup_epochs: float | None = Field(None, ge=0)
    """Passes over the training images instead."""
    aux_weight: float = Field(0.4, ge=0)
    """Of the auxiliary head's loss of the labels (`supervised`), where the student has such a head; 0 leaves the head
    untrained."""
    clip: float | None = Field(None, gt=0)
    """Largest Euclidean norm of the gradient; a longer one is scaled down. Left out, none is."""
    accumulate: int = Field(1, gt=0)
    """Parts that a batch is split into, one after the other, for batches that do not fit into memory; their gradients
    are added up to one step. Batch norm, and losses that compare images with one another, see one part at a time."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the student's weights, such as 0.999; the average is then what is validated and
    saved."""
    sync_batchnorm: bool = False
    """Whether batch norm of the student, of the method's layers and of its critic takes its statistics over the images
    of all processes, as one process with the whole batch would; otherwise each process takes those of its own share,
    and the first one's running statistics are kept. Without effect in a single process."""
    shard: Literal["none", "optimizer"] = "none"
    """`optimizer`: each of several processes keeps the optimiser's state (momentum, AdamW's averages) of its own part
    of the parameters only. It computes the same, bit by bit, and checkpoints are the same. A critic's optimiser stays
    whole. Without effect in a single process."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the networks; losses are computed in float32 at least. `auto` is bf16 where the device has it, else fp32."""
    channels_last: bool = True
    """Whether images and maps lie in memory with their channels together, which is faster on most devices."""
    compile: bool = False
    """Whether the networks are compiled between their taps: minutes at the start, less time per step afterwards."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; auto takes a GPU where there is one."""
    threads: int | None = Field(None, gt=0)
    """Threads of the CPU; left out, as many as torch takes."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of everything that is drawn: first weights, order of the images, augmentation, dropout, the methods' samples."""
    eval_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates at the end only. The best student on the validation split is kept."""
    save_every: int = Field(200, ge=0)
    """Steps between checkpoints, from which a stopped run goes on, besides those of each validation; 0 writes only
    these."""
    log_every: int = Field(10, gt=0)
    """Steps between lines of `metrics.jsonl`."""
    gradient_samples: int = Field(20, ge=0)
    """How often in the whole run each term's own gradient is measured, for the report; 0 never."""
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
        if self.schedule == "constant" and self.min_lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, which a constant schedule never reaches; leave it out")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones: expected rising shares such as [0.6, 0.8], got {self.milestones}")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is of SGD with momentum; set optimizer=sgd and momentum, or leave it out")
        owners = {"betas": "optimizer=adamw", "milestones": "schedule=step", "gamma": "schedule=step"}
        for key, owner in owners.items():
            other, _, needed = owner.partition("=")
            used, default = getattr(self, other), type(self).model_fields[key].default
            if used != needed and getattr(self, key) != default:
                raise ValueError(f"{key}: of {owner} alone, and {other} is {used}; leave it out")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _write(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the steps while they are not known, so that what is written can be read again."""
        written: dict[str, Any] = handler(self)
        if self.epochs is not None:
            del written["steps"]
        return written
