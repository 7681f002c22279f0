"""`train:` — optimisation, precision, what is kept when."""

from typing import Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Section


class TrainConfig(Section):
    """`train:` — optimisation, precision, what is kept when."""

    steps: int = Field(1000, gt=0)
    """Steps of the optimiser in the whole run."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, as in the papers, or `adamw`."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the start, after the warm-up."""
    momentum: float = Field(0.9, ge=0)
    """Of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """Of all weights; 5e-4 in SKD, IFVD and OpenMMLab (FAKD), 1e-4 in CIRKD (I2CKD), 1e-5 in SSTKD."""
    power: float = Field(0.9, ge=0)
    """Of the polynomial schedule: the learning rate is `min_lr + (lr − min_lr) · (1 − step/steps)^power`."""
    min_lr: float = Field(0.0, ge=0)
    """Where the learning rate ends; 1e-4 in OpenMMLab's schedules."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    aux_weight: float = Field(0.4, ge=0)
    """Of the auxiliary head's cross-entropy, where the student has such a head; 0 leaves the head untrained."""
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
    def _check_rates(self) -> "TrainConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, above lr, {self.lr:g}; it is where the learning rate ends")
        return self
