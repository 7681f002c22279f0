"""Epochs as steps: what a configuration says in passes over the images, once their number is known."""

import math

from segdistill.engine.build import build_split
from segdistill.engine.config import Config


def in_steps(config: Config, images: int | None = None) -> Config:
    """A configuration whose schedule is in steps alone.

    Args:
        config: where `train.epochs` and `train.warmup_epochs` may be given.
        images: of the training split, with and without labels, those of `data.unlabelled` aside. An epoch is
            images/batch_size steps, for a student alone as for a distilled one, so that both train equally long; a
            batch may straddle two epochs, and the last one is filled up. None: the data set is opened to count them,
            if that is needed.

    Returns:
        The configuration as it is where both are left out, else with `train.steps` and `train.warmup` in their place.

    Raises:
        ValueError: if the images have to be counted, and are not there.
    """
    train = config.train
    if train.epochs is None and train.warmup_epochs is None:
        return config
    if images is None:
        images = len(build_split(config.data, "train"))
    epoch = images / config.data.batch_size
    changes: dict[str, int | None] = {"epochs": None, "warmup_epochs": None}
    if train.epochs is not None:
        changes["steps"] = max(1, math.ceil(round(train.epochs * epoch, 6)))
    if train.warmup_epochs is not None:
        changes["warmup"] = round(train.warmup_epochs * epoch)
    return config.model_copy(update={"train": train.model_copy(update=changes)})
