"""What the values of a mask mean, where a user says so: ids, or colours of classes."""

from pathlib import Path

import numpy as np

from segdistill.data.classes import Classes, read_classes, read_colour
from segdistill.data.dataset import distinct_colours
from segdistill.data.files import Array, Bytes
from segdistill.data.pairs import check_ids, colours_to_ids
from segdistill.functional import IGNORE

Ignored = list[int | str | list[int]] | int
"""One value of a mask, or several, of ids or of colours."""


class LabelRule:
    """From the values of a mask to class ids.

    Args:
        classes: as `read_classes` takes them; None: there are none, and no masks either.
        root: where a file of classes is looked for.
        ignore: values of a mask that become 255, beside 255 itself.
        values: value in the mask → id.
        reduce_zero_label: masks count from 1, and 0 means void.
        by_colour: read palette masks by colour (true) or by index (false); None: by colour if the classes have some.

    Attributes:
        classes: their names.
        palette: a colour for each.
        by_colour: whether palette masks are read by their colours.

    Raises:
        ValueError: with one line on what is wrong with the classes or the ignored values.
    """

    def __init__(
        self,
        classes: str | Classes | None,
        root: Path,
        *,
        ignore: Ignored = IGNORE,
        values: dict[int, int] | None = None,
        reduce_zero_label: bool = False,
        by_colour: bool | None = None,
    ):
        names, colours = ([], []) if classes is None else read_classes(classes, root)
        self.classes = names
        self.palette = colours or distinct_colours(len(names))
        self.reduce_zero_label = reduce_zero_label
        self._has_colours = bool(colours)
        self.by_colour = self._has_colours if by_colour is None else by_colour
        ignored = [ignore] if isinstance(ignore, int) else ignore
        self._ids = {colour: index for index, colour in reversed(list(enumerate(colours)))}
        self._ids |= {read_colour(value, "ignore"): IGNORE for value in ignored if not isinstance(value, int)}
        self._values = {value: IGNORE for value in ignored if isinstance(value, int)} | (values or {})

    def check_several(self) -> None:
        """Raise ValueError with one line if there is one class alone."""
        if len(self.classes) == 1:
            raise ValueError(f"data.classes: only {self.classes[0]!r}, which every pixel would be; add a background "
                             f"class, as in [background, {self.classes[0]}]")  # fmt: skip

    def ids(self, values: Array, path: Path) -> Bytes:
        """The class ids of a mask.

        Args:
            values: (H,W) ids, or (H,W,3) colours.
            path: of the mask, for the error line.

        Raises:
            ValueError: naming the mask and the values that mean nothing.
        """
        if values.ndim == 3:
            return self._ids_of_colours(values, path)
        if values.dtype == np.uint8:
            table = self._map(np.arange(256))
            mapped = table.astype(np.uint8 if 0 <= table.min() <= table.max() <= 255 else np.int64)[values]
        else:
            mapped = self._map(values.astype(np.int64))
        return check_ids(mapped, len(self.classes), path, lambda: self._hint(set(np.unique(mapped).tolist())))

    def _map(self, values: Array) -> Array:
        """What values of a mask mean, as numbers of 64 bits."""
        if self.reduce_zero_label:
            kept = (values == IGNORE) | (values == IGNORE + 1)  # the latter is no class, and must not become void
            mapped = np.where(values == 0, IGNORE, np.where(kept, values, values - 1))
        else:
            mapped = values.copy()
        for value, index in self._values.items():
            mapped[values == value] = index
        return mapped

    def _ids_of_colours(self, values: Array, path: Path) -> Bytes:
        if self.reduce_zero_label:
            raise ValueError(f"{path}: a mask of colours, but data.reduce_zero_label is about ids; remove it")
        if not self._has_colours:
            raise ValueError(
                f"{path}: a mask of colours, but the classes have none; give each a colour in data.classes "
                "({road: [128, 64, 128], …}), or save class ids as an 8-bit PNG of one channel"
            )
        hint = (
            "add it to data.classes or data.ignore, or, if the mask's palette indices are ids, "
            "set data.by_colour: false"
        )
        return colours_to_ids(values.astype(np.uint8), self._ids, path, hint)

    def _hint(self, values: set[int]) -> str:
        count = len(self.classes)
        bad = values - set(range(count)) - {IGNORE}
        if bad == {count}:
            void = f"if {count} means void, set data.ignore: [{count}]"
            return f"{void}; if ids count from 1, set data.reduce_zero_label: true"
        if values <= {0, 127, 128, 255, 254, 1} and bad:
            return "grey levels rather than ids? map them, for instance data.values: {0: 0, 255: 1}"
        return (
            "map them with data.values, drop them with data.ignore, or give colours in data.classes for a palette mask"
        )
