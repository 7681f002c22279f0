"""Names of types that many files share."""

Size = tuple[int, int]
"""Height and width."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

Box = tuple[slice, slice]
"""Rows and columns of an image, in whole pixels; both slices have a start and a stop."""
