"""What stands in the street of `_street.py`: trees, poles, cars, people, as boards that face the camera."""

from collections.abc import Callable

import numpy as np

from segdistill.data.street.patterns import stripes
from segdistill.data.street.scene import CAR, EARTH, GREEN, GREY, PERSON, POLE, TREE, VIVID, Street

Thing = Callable[[Street, float, float], None]


def tree(street: Street, x: float, z: float) -> None:
    """A trunk and a crown with a frayed edge, or a bush.

    Args:
        street: to paint into.
        x: of its middle, from the middle of the road.
        z: ahead.
    """
    rng = street.rng
    bush = rng.random() < 0.3
    radius = rng.uniform(0.3, 0.6) if bush else rng.uniform(0.7, 1.5)
    middle = 0.8 * radius if bush else rng.uniform(2.0, 3.2)
    rows, columns, across, y = street.board(x, z, 2.6 * radius, max(0.0, middle - 1.3 * radius), middle + 1.3 * radius)
    leaves = street.leaves[rows, columns]
    crown = (across / radius) ** 2 + ((y - middle) / radius) ** 2 + 0.28 * leaves < 1
    light = 0.10 * (y - middle) / radius + 0.13 * leaves
    colour = street.colour(GREEN, GREEN, EARTH) + light
    if not bush:
        trunk_rows, trunk_columns, trunk, height = street.board(x, z, 0.16, 0.0, middle)
        bark = street.colour(EARTH, GREY) * 0.6 + 0.05 * street.fine[trunk_rows, trunk_columns]
        street.paint((np.abs(trunk) < 0.08) & (height > 0), bark, TREE, z, trunk_rows, trunk_columns)
    street.paint(crown & (y > 0), colour, TREE, z, rows, columns)


def pole(street: Street, x: float, z: float) -> None:
    """A lamp post, or a post with a sign.

    Args:
        street: to paint into.
        x: of its middle, from the middle of the road.
        z: ahead.
    """
    rng = street.rng
    height, half = rng.uniform(1.8, 4.0), max(rng.uniform(0.035, 0.06), 0.5 * z / street.focal)  # a pixel at least
    rows, columns, across, y = street.board(x, z, 1.0, 0.0, height)
    shape = (np.abs(across) < half) & (y > 0)
    colour = street.colour(GREY, VIVID)
    if rng.random() < 0.5:
        arm = (across * -np.sign(x) > 0) & (np.abs(across) < 0.45) & (y > height - 2 * half)
        shape = shape | arm
    else:
        sign = (np.abs(across) < 0.22) & (np.abs(y - height + 0.3) < 0.22)
        rim = np.maximum(np.abs(across), np.abs(y - height + 0.3)) > 0.16
        board = np.where(rim, street.colour(VIVID), street.colour(VIVID, GREY))
        colour = np.where(sign, board, colour)
        shape = shape | sign
    street.paint(shape, colour, POLE, z, rows, columns)


def car(street: Street, x: float, z: float) -> None:
    """A car from behind, or from its side.

    Args:
        street: to paint into.
        x: of its middle, from the middle of the road.
        z: ahead.
    """
    rng = street.rng
    side = rng.random() < 0.25
    width, height = (2.4, 0.85) if side else (1.05, rng.uniform(0.8, 1.05))
    half = width / 2
    rows, columns, across, y = street.board(x, z, width, 0.0, height)
    below = slice(rows.stop - max(1, (rows.stop - rows.start) // 8), rows.stop + max(1, (rows.stop - rows.start) // 12))
    street.image[:, below, columns] *= np.float32(0.55)
    waist = 0.55 * height
    roof = half * (0.62 if side else 0.85) - (y - waist) * (0.5 if side else 0.18)
    body = (y > 0.16) & (y < waist) & (np.abs(across) < half - 0.6 * (y < 0.22) * 0.1)
    cabin = (y >= waist) & (y < height) & (np.abs(across) < roof)
    window = cabin & (y > waist + 0.05) & (y < height - 0.06) & (np.abs(across) < roof - 0.07)
    tyres = np.abs(np.abs(across) - half * (0.62 if side else 0.78))
    if side:
        wheels = tyres**2 + (y - 0.17) ** 2 < 0.17**2
        window &= np.abs(across) > 0.04
        lamps = body & (np.abs(across) > half - 0.1) & (y > waist - 0.15)
    else:
        wheels = (tyres < 0.11) & (y < 0.25) & (y > 0)
        lamps = body & (np.abs(across) > half - 0.16) & (np.abs(y - 0.42) < 0.08)
    paint = street.colour(VIVID, GREY, VIVID) + 0.12 * (y - waist)
    colour = np.broadcast_to(paint, (3, *body.shape)).copy()
    colour[:, wheels] = 0.1
    colour[:, window] = street.colour(GREY)[:, 0] * rng.choice([0.3, 0.6, 1.1])
    colour[:, lamps] = [[0.75], [0.12], [0.10]] if rng.random() < 0.6 else [[0.95], [0.93], [0.85]]
    plate = body & (np.abs(across) < 0.18) & (np.abs(y - 0.32) < 0.05)
    colour[:, plate] = 0.85
    street.paint(body | cabin | wheels, colour, CAR, z, rows, columns)


def person(street: Street, x: float, z: float) -> None:
    """Somebody who stands or walks.

    Args:
        street: to paint into.
        x: of its middle, from the middle of the road.
        z: ahead.
    """
    rng = street.rng
    size = rng.uniform(0.75, 1.2)
    rows, columns, across, y = street.board(x, z, 0.6 * size, 0.0, 1.06 * size)
    across, y = across / size, y / size
    stride = rng.uniform(0.04, 0.16) * (0.5 - y).clip(0, None) * 2
    head = across**2 + (y - 0.95) ** 2 < 0.085**2
    torso = (np.abs(across) < 0.17 - 0.3 * np.abs(y - 0.72)) & (y > 0.45) & (y < 0.88)
    legs = (np.abs(np.abs(across) - 0.05 - stride) < 0.055) & (y > 0) & (y <= 0.48)
    skin = np.array([0.75, 0.56, 0.45], np.float32)[:, None, None] * np.float32(rng.uniform(0.45, 1.15))
    trousers = street.colour(VIVID, GREY)
    shirt = street.colour(VIVID, EARTH, GREEN)
    if rng.random() < 0.3:
        shirt = np.where(stripes(y, 0.12, 0.5), shirt, street.colour(VIVID))
    colour = np.where(head, skin, np.where((y > 0.47), shirt, trousers))
    street.paint(head | torso | legs, colour, PERSON, z, rows, columns)


def things(street: Street) -> list[tuple[float, float, Thing]]:
    """What stands where in a street: (z, x, thing), the farthest first.

    Args:
        street: whose sizes and random numbers decide.
    """
    rng = street.rng
    road, kerb = street.road, street.kerb
    found: list[tuple[float, float, Thing]] = []
    for side in (-1, 1):
        found += [(z, side * (kerb + rng.uniform(0.3, 1.5)), tree) for z in rng.uniform(2.5, 16, rng.integers(0, 5))]
        beside = side * rng.uniform(road + 0.12, road + 0.3)
        found += [(z, beside, pole) for z in rng.uniform(2, 10, rng.integers(0, 4))]
        found += [(z, side * (road - 0.55), car) for z in rng.uniform(2.5, 14, rng.integers(0, 4))]
        found += [(z, side * rng.uniform(road, kerb), person) for z in rng.uniform(2, 8, rng.integers(0, 4))]
    found += [(z, rng.uniform(-road, road), person) for z in rng.uniform(2.5, 8, rng.integers(0, 2))]
    found += [(z, rng.uniform(-0.4, 0.4) * road, car) for z in rng.uniform(3.5, 14, rng.integers(0, 2))]
    return sorted(found, key=lambda item: -item[0])
