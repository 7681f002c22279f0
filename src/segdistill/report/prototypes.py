"""Distances between the class prototypes of a student and its teacher (I2CKD's Figure 1), for any pair of networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segdistill.functional import class_sums
from segdistill.methods.i2ckd import prototype_distances

RIDGE = 1e-4
"""Weight of the ridge in the fit, as a share of the features' mean energy."""


@dataclass(frozen=True)
class ClassDistances:
    """By class, in units of the mean distance between two of the teacher's prototypes; NaN for absent classes."""

    within: list[float]
    """Of the student's prototype from the teacher's of the same class."""
    between: list[float]
    """Of the student's prototype from the teacher's of the other classes, on average."""

    @property
    def means(self) -> tuple[float, float]:
        """Within and between, over the classes that are there."""
        a, b = torch.tensor(self.within), torch.tensor(self.between)
        return float(a.nanmean()), float(b.nanmean())


class Prototypes:
    """Gathers the prototypes of two networks over a data set.

    The feature spaces of two networks have nothing to do with one another, and only some methods learn a map between
    them. So that all runs can be compared, the student's features go through the linear map that fits the teacher's
    best (least squares over pixels): it is fitted on one half of the images, distances are taken on the other.

    Args:
        classes: C.
        mapped: whether the student needs that map; score maps, which both networks have in common, do not.
    """

    def __init__(self, classes: int, *, mapped: bool):
        self.classes = classes
        self.mapped = mapped
        self.gram = self.cross = torch.zeros((), dtype=torch.float64)
        self.sums: list[Tensor] = [self.gram, self.gram]
        self.counts = torch.zeros(classes)

    def add(self, student: Tensor, teacher: Tensor, labels: Tensor, *, fit: bool) -> None:
        """Take one batch in.

        Args:
            student: (N,A,H,W).
            teacher: (N,B,H,W).
            labels: (N,h,w).
            fit: whether it is for the map, else for the prototypes.
        """
        if fit and self.mapped:
            own, known = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
            self.gram = self.gram + (own @ own.t()).cpu().double()
            self.cross = self.cross + (own @ known.t()).cpu().double()
            return
        pairs = [class_sums(maps, labels, num_classes=self.classes) for maps in (student, teacher)]
        self.sums = [t + sums.sum(0).cpu().double() for t, (sums, _) in zip(self.sums, pairs, strict=True)]
        self.counts = self.counts + pairs[0][1].sum(0).cpu()

    def distances(self) -> ClassDistances | None:
        """The distances; None if fewer than two classes were seen, or there was nothing to fit."""
        present = self.counts > 0
        if int(present.sum()) < 2 or (self.mapped and not self.gram.dim()):
            return None
        own, known = (total / self.counts.clamp(min=1)[:, None] for total in self.sums)
        if self.mapped:
            ridge = RIDGE * self.gram.diagonal().mean().clamp(min=1e-12)
            own = own @ torch.linalg.solve(self.gram + ridge * torch.eye(len(self.gram)), self.cross)
        unit = torch.pdist(known[present]).mean().clamp(min=1e-12)
        found = prototype_distances(own, known, present)
        return ClassDistances((found.within / unit).tolist(), (found.between / unit).tolist())
