"""Names of types that many files share."""

Size = tuple[int, int]
"""Height and width."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
