"""Names of types that many files share."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Size = tuple[int, int]
"""Height and width."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

Box = tuple[slice, slice]
"""Rows and columns of an image, in whole pixels; both slices have a start and a stop."""

Told = Callable[[int, int | None], None]
"""Is told how far lengthy work is: (done, in all), the latter None while nobody knows."""

Stages = Callable[[str], AbstractContextManager[Told]]
"""Is called with what is done next, for instance images; a context, as long as that lasts, that gives what is told."""
