"""One cell of a comparison's grid: a run with its place among the others."""

from dataclasses import dataclass, replace
from pathlib import Path

from segdistill.engine.config import Config

Place = tuple[str, str | None, int | None, str]
"""Data set, labelled share, length, student."""


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Args:
        data: label of the data set.
        student: label of the network.
        method: label of the method.
        seed: of the run.
        config: the complete configuration.
        folder: where the run is written.
        labelled: label of the share of images with labels; None where the grid has no such shares.
        length: steps, where the grid has trainings of several lengths; else None.
        metrics: by which it is evaluated beside the mean IoU.
        guide: the configuration whose teacher it is compared with by a metric; None where none of them needs one.
        labelled_images: how many training images have labels; None until the data have been looked at.
    """

    data: str
    student: str
    method: str
    seed: int
    config: Config
    folder: Path
    labelled: str | None = None
    length: int | None = None
    metrics: tuple[str, ...] = ()
    guide: Config | None = None
    labelled_images: int | None = None

    @property
    def place(self) -> Place:
        """What methods that are held against each other share: data, labels, length, student."""
        return self.data, self.labelled, self.length, self.student

    @property
    def row(self) -> tuple[Place, str]:
        """What the runs of all seeds share: place and method."""
        return self.place, self.method

    @property
    def told(self) -> str:
        """The row as a text."""
        return " ".join(str(part) for part in (*self.place, self.method) if part is not None)

    def with_steps(self, steps: int) -> "Cell":
        """The same run with its schedule fitted to another number of steps: warm-up and validations keep their shares.

        Milestones are shares.

        Args:
            steps: how many.
        """
        train, share = self.config.train, steps / self.config.train.steps
        changes: dict[str, float] = {"steps": steps, "warmup": round(train.warmup * share)}
        if train.warmup_epochs is not None:
            changes["warmup_epochs"] = train.warmup_epochs * share
        if train.eval_every:
            changes["eval_every"] = -(-steps // max(1, round(train.steps / train.eval_every)))
        return replace(self, config=self.config.model_copy(update={"train": train.model_copy(update=changes)}))
