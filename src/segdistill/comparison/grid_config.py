"""What a comparison adds to a run's configuration."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Section
from segdistill.metrics._catalogue import ALL, METRICS


class GridConfig(Section):
    """The keys that a comparison adds to a run's configuration, at the top level of the file or as `key=value`."""

    methods: list[Any] = Field(min_length=1)
    """What is compared: a list of entries as for `method:`, that is names, mappings with options, or lists of both that
    are used together."""
    seeds: list[int] = Field([0, 1, 2])
    """Number of runs of each entry, or the list of their seeds."""
    students: list[Any] | None = Field(None, min_length=1)
    """List of students: entries as for `student:`, names of networks, or configuration files. If left out, the student
    of the configuration."""
    widths: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    """Compares one student at several widths, instead of several `students`: factors on its channels, as in
    `student.width`."""
    labelled: list[int | float | str | list[str]] | None = Field(None, min_length=1)
    """Compares several labelled shares: a list of values of `data.labelled`, such as `[0.125, 0.25, 1.0]` or
    `["0001TP*", ["0001TP*", "0006R0*"], "*"]`. Each share has its own baseline; a teacher that the comparison trains
    uses all labels."""
    lengths: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=1)
    """Compares trainings of several lengths: a list of values of `train.steps`, such as `[800, 1600, 3200]`. Each
    length has its own baseline and a whole schedule: warm-up and the number of validations keep their shares of the
    run. A teacher that the comparison trains keeps its own length."""
    against: str | None = None
    """A second method, besides the baseline, that all others are compared with, such as `cwd`: its name or label."""
    budget: Literal["steps", "seconds"] | None = None
    """`steps`: all entries train for `train.steps`; `seconds`: all entries train for the same time. It follows from
    `seconds` and need not be given."""
    seconds: float | None = Field(None, gt=0)
    """Seconds of training per run, without validation."""
    split: Literal["val", "test"] = "test"
    """The split on which the students are compared; each run delivers the student that was best on `val`."""
    metrics: list[str] = Field([])
    """Further metrics for every run and for a teacher, by their names in `segdistill list metrics`, or `all`; they get
    their own table. If you add a metric later, runs are evaluated again and not trained again."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence level of the intervals; the corrected p values are compared with 1 − `confidence`."""
    resamples: int = Field(2000, ge=100)
    """Number of bootstrap draws over images, or over sequences if `data.groups` is set."""

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @pydantic.field_validator("labelled", mode="before")
    @classmethod
    def _are_no_flags(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(entry, bool) for entry in value):  # true would be one image
            raise ValueError(f"expected numbers of images, shares of them, or patterns of names, got {value}")
        return value

    @pydantic.field_validator("metrics")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name != ALL:
                METRICS.check(name)
        return names

    @pydantic.model_validator(mode="after")
    def _check(self) -> "GridConfig":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected a count or different whole numbers, got {self.seeds}")
        if self.widths is not None:
            if self.students is not None:
                raise ValueError("students and widths: give one of them; widths are of the one student")
            if len(set(self.widths)) < len(self.widths):
                raise ValueError(f"widths: expected different ones, got {self.widths}")
        if self.lengths is not None:
            if len(set(self.lengths)) < len(self.lengths):
                raise ValueError(f"lengths: expected different numbers of steps, got {self.lengths}")
            if self.seconds is not None:
                raise ValueError("lengths and seconds: give one of them; both say how long a run trains")
        if self.budget is None:
            self.budget = "steps" if self.seconds is None else "seconds"
        if (self.budget == "seconds") != (self.seconds is not None):
            raise ValueError("budget=seconds and seconds=N go together")
        return self
