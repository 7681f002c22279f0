"""A street seen from a car, drawn with numpy: planes and boards in perspective, told apart by texture and shape.

Lengths are in heights of the camera (about 1.5 m); x to the right, y up from the ground, z ahead. Screen coordinates
are pixels. Everything is painted into an image (3,H,W), its labels and a depth map. A colour is (3,1,1), or (3,h,w)
with texture.
"""

import numpy as np

from segdistill.data.street.patterns import Floats, Mask, grain, scatter, smooth_noise, stripes

SKY, BUILDING, FENCE, TREE, GRASS, ROAD, MARKING, PAVEMENT, POLE, CAR, PERSON = range(11)
NAMES = ("sky", "building", "fence", "tree", "grass", "road", "marking", "pavement", "pole", "car", "person")

FAR = 40.0
HOUSES = 12

# Typical colours; several classes share each of them, so that colour alone tells little.
GREY = np.array([(0.45, 0.45, 0.46), (0.33, 0.33, 0.35), (0.58, 0.57, 0.55)], np.float32)
GREEN = np.array([(0.24, 0.36, 0.16), (0.36, 0.40, 0.18), (0.20, 0.28, 0.18), (0.45, 0.40, 0.20)], np.float32)
EARTH = np.array([(0.55, 0.32, 0.25), (0.62, 0.52, 0.40), (0.42, 0.28, 0.20), (0.70, 0.66, 0.58)], np.float32)
VIVID = np.array(
    [(0.65, 0.12, 0.12), (0.12, 0.22, 0.50), (0.80, 0.80, 0.80), (0.14, 0.14, 0.15), (0.70, 0.60, 0.20)], np.float32
)
HEAVEN = np.array([(0.45, 0.62, 0.88), (0.70, 0.74, 0.78), (0.58, 0.58, 0.62), (0.80, 0.66, 0.58)], np.float32)


class Street:
    """One scene.

    Args:
        rng: source of everything random.
        height: of the image.
        width: of the image.
        difficulty: of telling classes apart: spread of colours, of light, and noise; 1 is usual, 0 is clean.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, difficulty: float):
        self.rng = rng
        self.difficulty = difficulty
        self.size = (height, width)
        self.image = np.zeros((3, height, width), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), FAR * 2, np.float32)
        self.horizon = height * rng.uniform(0.36, 0.48)
        self.centre = width * rng.uniform(0.35, 0.65)
        self.focal = 0.75 * (height * width) ** 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.x = np.arange(width, dtype=np.float32)[None] + 0.5
        self.unit = max(1, round(min(height, width) / 128))
        self.fine = grain(rng, height, width)
        self.leaves = 0.6 * self.noise(2, 2) + 0.5 * self.noise(5, 5)
        self.clouds = self.noise(12, 30)
        self.road = rng.uniform(1.2, 2.2)
        self.kerb = self.road + rng.uniform(0.5, 1.2)
        # Drawn at once, since single draws would take longer than the painting; a street needs about 100 of them.
        offsets = rng.standard_normal((256, 4, 1, 1), np.float32)
        self._tints = iter(np.float32(0.05 * difficulty) * (offsets[:, :3] + np.float32(1.2) * offsets[:, 3:]))
        self.shift = rng.uniform(-0.6, 0.6) * self.road  # of the camera from the middle of the road

    def draw(self) -> None:
        """Paint what stands still and is long: sky, ground, houses, fences."""
        self._sky()
        self._skyline()
        self._ground()
        for side in (-1, 1):
            self._facades(side)
            if self.rng.random() < 0.55:
                self._fence(side)

    def noise(self, rows: int, columns: int) -> Floats:
        """Smooth noise, about -1 … 1.

        Args:
            rows: height of its cells in pixels of a 128-pixel image.
            columns: their width.
        """
        return smooth_noise(self.rng, *self.size, rows * self.unit, columns * self.unit)

    def colour(self, *choices: Floats) -> Floats:
        """One of the typical colours, off by a random amount: (3,1,1).

        Args:
            *choices: groups of colours to choose from.
        """
        group = choices[int(self.rng.random() * len(choices))]
        base = group[int(self.rng.random() * len(group)), :, None, None]
        tinted: Floats = np.maximum(base + next(self._tints), np.float32(0.05))
        return tinted

    def paint(self, mask: Mask, colour: Floats, label: int, depth: Floats | float, rows: slice, columns: slice) -> None:
        """Paint what of a box is in the mask and nearer than what is there.

        Args:
            mask: (h,w) of the box.
            colour: (3,1,1), or (3,h,w) of the box.
            label: of the class.
            depth: z, a number or an array that broadcasts to (h,w).
            rows: of the box.
            columns: of the box.
        """
        box = (rows, columns)
        mask = mask & (depth <= self.depth[box])
        np.copyto(self.image[:, rows, columns], colour, where=mask)
        np.copyto(self.labels[box], np.uint8(label), where=mask)
        np.copyto(self.depth[box], depth, where=mask, casting="same_kind")

    def _sky(self) -> None:
        top, low = self.colour(HEAVEN), self.colour(HEAVEN) * 0.5 + 0.5
        height = (self.y / self.horizon).clip(0, 1)
        self.image[:] = top * (1 - height) + low * height
        self.image += np.float32(0.10 * self.rng.random()) * self.clouds
        self.haze = low

    def _skyline(self) -> None:
        """Distant trees or roofs along the horizon."""
        trees = self.rng.random() < 0.6
        rise = self.noise(64, 6 if trees else 14)[0] + (self.noise(64, 2)[0] * 0.4 if trees else 0)
        if not trees:
            rise = np.round(rise * 2) / 2
        top = self.horizon - self.size[0] * (0.03 + 0.03 * abs(rise))
        colour = self.colour(GREEN) if trees else self.colour(GREY, EARTH)
        texture = 0.06 * self.leaves if trees else 0.12 * (stripes(self.x, 5.0 * self.unit, 0.4) - 0.4) + 0 * self.y
        everywhere = slice(None)
        shape = (self.y > top) & (self.y < self.horizon + 1.5)
        self.paint(shape, colour + texture, TREE if trees else BUILDING, FAR, everywhere, everywhere)

    def _ground(self) -> None:
        first = min(int(self.horizon) + 1, self.size[0] - 1)
        rows, columns = slice(first, None), slice(None)
        z = (self.focal / np.maximum(self.y[rows] - self.horizon, 0.5)).astype(np.float32)
        x = (self.x - self.centre) / self.focal * z + np.float32(self.shift)
        detail = np.exp(-z / 7)
        fine, leaves, clouds = self.fine[rows], self.leaves[rows], self.clouds[rows]

        green = self.rng.random() < 0.6
        streaks = self.noise(3, 1)[rows]
        verge = self.colour(GREEN)
        if green:
            texture = (0.09 * streaks + 0.05 * leaves) * (0.3 + 0.7 * detail)
            self.paint(np.ones(x.shape, bool), verge + texture, GRASS, z, rows, columns)

        tile = self.rng.uniform(0.25, 0.5)
        joints = stripes(x, tile, 0.12) | stripes(z, tile, 0.12)
        shade = 0.12 * scatter(np.floor(x / tile), np.floor(z / tile)) - 0.16 * joints
        paved = (np.abs(x) < self.kerb) if green else np.ones(x.shape, bool)
        stone = self.colour(GREY, GREY, EARTH)
        texture = shade * detail + 0.02 * fine
        self.paint(paved, stone + texture, PAVEMENT, z, rows, columns)

        asphalt = self.colour(GREY)
        texture = 0.06 * fine * (0.4 + detail) + 0.05 * clouds - 0.05 * (np.abs(np.abs(x) - self.road / 2) < 0.25)
        self.paint(np.abs(x) < self.road, asphalt + texture, ROAD, z, rows, columns)
        self._markings(x, z, asphalt, rows)
        kerb = np.abs(np.abs(x) - self.road - 0.06) < 0.06
        self.image[:, rows][:, kerb] *= np.float32(self.rng.uniform(0.7, 1.25))

    def _markings(self, x: Floats, z: Floats, asphalt: Floats, rows: slice) -> None:
        lines = np.abs(x) < 0.07
        if self.rng.random() < 0.7:
            lines &= stripes(z + np.float32(self.rng.uniform(0, 3)), 2.4, 0.55)
        if self.rng.random() < 0.5:
            lines |= np.abs(np.abs(x) - self.road + 0.16) < 0.06
        if self.rng.random() < 0.35:
            start = self.rng.uniform(1.5, 5)
            lines |= (z > start) & (z < start + 1.3) & stripes(x, 0.5, 0.5) & (np.abs(x) < self.road - 0.1)
        lines &= z < 14
        worn = (0.75 + 0.35 * self.leaves[rows]).clip(0.25, 1)
        white = np.array([0.85, 0.84, 0.78], np.float32)[:, None, None]
        self.paint(lines, asphalt * (1 - worn) + white * worn, MARKING, z, rows, slice(None))

    def _wall(self, side: int, distance: float) -> tuple[slice, Floats, Floats]:
        """The upright plane along one side of the street: its columns, their z (1,w), and y of its points (H,w)."""
        reach = side * (self.x[0] - self.centre)
        beside = np.flatnonzero(reach > self.focal * distance / FAR)
        columns = slice(int(beside[0]), int(beside[-1]) + 1) if len(beside) else slice(0, 0)
        z = (self.focal * distance / reach[columns])[None].astype(np.float32)
        return columns, z, (self.horizon - self.y) * z / np.float32(self.focal) + 1

    def _facades(self, side: int) -> None:
        """A row of houses with gaps, each of its own colour, bricks or boards or plaster, with windows."""
        rng = self.rng
        setback = rng.uniform(0.1, 0.8)
        columns, z, y = self._wall(side, self.kerb + setback - side * self.shift)
        ends = 1 + np.cumsum(rng.uniform(1.5, 7, HOUSES)).astype(np.float32)
        house = np.searchsorted(ends, z[0])
        heights = rng.uniform(2.0, 7.5, HOUSES + 1) * (rng.random(HOUSES + 1) < 0.75)
        colours = np.concatenate([self.colour(EARTH, GREY, EARTH, VIVID) for _ in range(HOUSES + 1)], axis=2)
        course, brick = rng.uniform(0.18, 0.32), rng.uniform(0.4, 0.7)
        row = np.floor(y / course)
        along = z / brick + 0.5 * (row % 2)
        mortar = stripes(y, course, 0.2) | stripes(along, 1, 0.15)
        bricks = 0.22 * scatter(np.floor(along), row) + np.float32(rng.choice([-0.15, 0.15])) * mortar
        boards = 0.14 * stripes(y, course * 1.5, 0.2) + 0.02 * self.fine[:, columns]
        plaster = 0.05 * self.clouds[:, columns] + 0.015 * self.fine[:, columns]
        style = rng.integers(0, 4, HOUSES + 1)[house]
        texture = np.where(style < 2, bricks, np.where(style == 2, boards, plaster)) * np.exp(-z / 16)
        colour = colours[:, :, house] + texture
        panes = stripes(z, rng.uniform(1.0, 1.6), 0.45) & stripes(y + 0.5, rng.uniform(1.2, 1.7), 0.5) & (y > 0.5)
        glass = self.colour(HEAVEN, GREY) * np.float32(rng.choice([0.35, 0.6, 1.0]))
        np.copyto(colour, glass + 0.05 * self.clouds[:, columns], where=panes)
        self.paint((y > 0) & (y < heights[house]), colour, BUILDING, z, slice(None), columns)

    def _fence(self, side: int) -> None:
        """Pickets, mesh or planks along the pavement."""
        rng = self.rng
        columns, z, y = self._wall(side, self.kerb + rng.uniform(0.02, 0.1) - side * self.shift)
        start, height, pitch = rng.uniform(1, 6), rng.uniform(0.6, 1.1), rng.uniform(0.18, 0.3)
        inside = (y > 0) & (y < height) & (z > start) & (z < start + rng.uniform(2, 9))
        kind = rng.integers(3)
        if kind == 0:
            bars = stripes(z, pitch, 0.55) | (np.abs(y - 0.8 * height) < 0.05) | (np.abs(y - 0.2 * height) < 0.05)
        elif kind == 1:
            bars = stripes(z + y, pitch, 0.35) | stripes(z - y, pitch, 0.35) | (y > 0.9 * height)
        else:
            bars = stripes(y, pitch, 0.7) | (stripes(z, 5 * pitch, 0.15) & (y > 0))
        colour = self.colour(EARTH, GREY, GREEN, VIVID)
        # Between the bars one sees what is behind, in its shade; the label is the fence's, as annotators draw it.
        behind = self.image[:, :, columns] * np.float32(0.75)
        bars = np.where(bars, colour + 0.02 * self.fine[:, columns], behind)
        self.paint(inside, bars, FENCE, z, slice(None), columns)

    def board(self, x: float, z: float, width: float, low: float, high: float) -> tuple[slice, slice, Floats, Floats]:
        """The box that an upright rectangle at (x, z) covers on the screen, with x from its middle and y of each pixel.

        Args:
            x: of the middle, on the ground from the middle of the road.
            z: ahead.
            width: of the rectangle.
            low: its lower edge above the ground.
            high: its upper edge.
        """
        scale = self.focal / z
        middle, ground = self.centre + (x - self.shift) * scale, self.horizon + scale
        top, bottom = ground - high * scale, ground - low * scale
        left, right = middle - width / 2 * scale, middle + width / 2 * scale
        rows = slice(max(0, int(top)), max(0, int(np.ceil(bottom))))
        columns = slice(max(0, int(left)), max(0, int(np.ceil(right))))
        return rows, columns, (self.x[:, columns] - middle) / scale, (ground - self.y[rows]) / scale

    def light(self) -> None:
        """Haze, shadow, colour of the light, exposure, blur and the sensor's noise."""
        rng, strength = self.rng, self.difficulty
        haze = 1 - np.exp(-self.depth * np.float32(rng.uniform(0, 0.035) * min(strength, 2)))
        self.image += haze * (self.haze - self.image)
        if rng.random() < 0.5:
            edge = self.centre + (self.y - self.horizon) * rng.uniform(-1.5, 1.5) + 6 * self.clouds
            shade = ((self.x > edge) == (rng.random() < 0.5)) & (self.labels != SKY)
            self.image *= np.where(shade, np.float32(rng.uniform(0.5, 0.8)), np.float32(1))
        cast = 1 + np.float32(0.06 * strength) * rng.standard_normal((3, 1, 1), np.float32)
        slope = 1 + rng.uniform(-0.25, 0.25) * strength * (self.x / self.size[1] - 0.5)
        self.image *= cast * np.float32(rng.uniform(0.75, 1.25)) * slope
        soft = np.float32(rng.uniform(0.0, 0.2))
        for view in (self.image, self.image.swapaxes(1, 2)):
            view[:, 1:-1] += soft * (view[:, :-2] + view[:, 2:] - 2 * view[:, 1:-1])
        self.image += np.float32(rng.uniform(0.01, 0.05) * strength) * grain(rng, *self.image.shape)
