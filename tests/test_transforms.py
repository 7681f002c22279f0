import colorsys
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.data import build_dataset
from segdistill.data.dataset import Held, Unlabelled
from segdistill.data.files import count_pixels, read_image, read_part
from segdistill.data.photometric import distort, saturate, turn_hue
from segdistill.data.transforms import EvalTransform, TrainTransform, stack


def ramp(height, width):
    """An image whose red is the column and green the row, and a mask of 8×8 blocks of one id each."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    image = torch.stack([columns.expand(height, width), rows.expand(height, width), (rows + columns) % 256])
    return image.to(torch.uint8), ((rows // 8 * 3 + columns // 8) % 11).to(torch.uint8)


def test_nothing_to_do_leaves_everything_as_it_is():
    image, mask = ramp(40, 56)
    for transform in (TrainTransform(crop=None, scale=(1, 1), flip=False), EvalTransform()):
        out, target = transform(image, mask)
        assert out.dtype == torch.float32
        assert target.dtype == torch.int64
        assert torch.equal((out * 255).round().to(torch.uint8), image)
        assert torch.equal(target, mask.long())


def test_a_crop_is_a_piece_of_the_image():
    image, mask = ramp(64, 96)
    transform = TrainTransform(crop=(24, 32), scale=(1, 1), flip=False)
    seen = set()
    for _ in range(30):
        out, target = transform(image, mask)
        left, top = round(float(out[0, 0, 0] * 255)), round(float(out[1, 0, 0] * 255))
        seen.add((top, left))
        assert torch.equal((out * 255).round().to(torch.uint8), image[:, top : top + 24, left : left + 32])
        assert torch.equal(target, mask[top : top + 24, left : left + 32].long())
    assert len(seen) > 20


@pytest.mark.parametrize(("height", "width"), [(64, 96), (300, 17), (7, 200)])
@pytest.mark.parametrize("crop", [(32, 48), (65, 33), (1, 1)])
def test_the_size_is_always_that_of_the_crop(height, width, crop):
    image, mask = ramp(height, width)
    for _ in range(20):
        out, target = TrainTransform(crop=crop)(image, mask)
        assert out.shape == (3, *crop)
        assert target.shape == crop
        assert out.min() >= 0
        assert out.max() <= 1


def test_padding_is_the_fill_and_255_and_lies_on_all_sides():
    image, mask = torch.zeros(3, 10, 10, dtype=torch.uint8), torch.zeros(10, 10, dtype=torch.uint8)
    transform = TrainTransform(crop=(16, 18), scale=(1, 1), fill=(0.1, 0.2, 0.3))
    corners = set()
    for _ in range(30):
        out, target = transform(image, mask)
        padded = target == 255
        assert (~padded).sum() == 100
        torch.testing.assert_close(out[:, padded].mean(1), torch.tensor([0.1, 0.2, 0.3]))
        assert out[:, ~padded].abs().max() == 0
        corners.add(tuple((~padded).nonzero()[0].tolist()))
    assert len(corners) > 10


def test_image_and_mask_stay_aligned_under_every_change():
    # The mask is a function of the image: what is bright is 1. After scale, crop and flip this must still hold.
    blocks = torch.randint(0, 2, (12, 12)).repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = (blocks * 255).to(torch.uint8).expand(3, -1, -1)
    transform = TrainTransform(crop=(96, 96), scale=(0.5, 2.0))
    for _ in range(40):
        out, target = transform(image, blocks.to(torch.uint8))
        clear = (target != 255) & ((out[0] - 0.5).abs() > 0.3)
        assert clear.sum() > 0.7 * (target != 255).sum()
        assert torch.equal(out[0][clear] > 0.5, target[clear] == 1)


def test_scale_follows_its_range():
    image, mask = ramp(128, 128)
    for factor in (0.5, 1.0, 1.6, 2.0):
        out, target = TrainTransform(crop=(64, 64), scale=(factor, factor), flip=False)(image, mask)
        inside = (out[0] * 255)[:, 5:-5]
        slope = (inside[:, -1] - inside[:, 0]).mean() / (inside.shape[1] - 1)
        assert slope.item() == pytest.approx(1 / factor, rel=0.03)
    out, target = TrainTransform(crop=(128, 128), scale=(0.5, 0.5))(image, mask)
    assert (target != 255).sum() == 64 * 64


def test_the_mean_scale_is_the_middle_of_the_range():
    image, mask = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)
    transform = TrainTransform(crop=(64, 64), scale=(0.5, 1.5))
    sides = [(transform(image, mask)[1] == 0).sum().sqrt().item() / 32 for _ in range(300)]
    assert sum(sides) / 300 == pytest.approx(1.0, abs=0.06)
    assert min(sides) < 0.6
    assert max(sides) > 1.4


def test_flip_is_a_mirror_in_half_of_the_cases():
    image, mask = ramp(16, 24)
    transform = TrainTransform(crop=None, scale=(1, 1))
    flipped = 0
    for _ in range(60):
        out, target = transform(image, mask)
        if out[0, 0, 0] > 0:
            flipped += 1
            out, target = out.flip(-1), target.flip(-1)
        assert torch.equal((out * 255).round().to(torch.uint8), image)
        assert torch.equal(target, mask.long())
    assert 15 < flipped < 45


def test_photometric_changes_the_image_only():
    image, mask = ramp(32, 32)
    out, target = TrainTransform(crop=None, scale=(1, 1), flip=False, photometric=True)(image, mask)
    assert type(out) is torch.Tensor
    assert not torch.equal((out * 255).round().to(torch.uint8), image)
    assert torch.equal(target, mask.long())


def test_size_comes_before_crop():
    image, mask = ramp(64, 96)
    out, target = TrainTransform(crop=None, scale=(1, 1), flip=False, size=(32, 48))(image, mask)
    expected, expected_target = EvalTransform(size=(32, 48))(image, mask)
    torch.testing.assert_close(out, expected)
    assert torch.equal(target, expected_target)
    assert target.shape == (32, 48)
    assert torch.equal(target, mask[1::2, 1::2].long())  # ids are picked, never mixed
    out, _ = TrainTransform(crop=(16, 16), scale=(1, 1), flip=False, size=(32, 48))(image, mask)
    assert (out[0, :, -1] - out[0, :, 0]).mean().item() * 255 / 15 == pytest.approx(2, rel=0.05)


def test_randomness_is_torchs():
    image, mask = ramp(64, 96)
    transform = TrainTransform(crop=(24, 24), photometric=True)
    torch.manual_seed(3)
    first = transform(image, mask)
    torch.manual_seed(3)
    for a, b in zip(first, transform(image, mask), strict=True):
        assert torch.equal(a, b)


def test_the_source_is_not_written_to():
    image, mask = ramp(40, 40)
    before = image.clone(), mask.clone()
    for _ in range(5):
        for transform in (TrainTransform(crop=None, photometric=True), EvalTransform()):
            out, target = transform(image, mask)
            out.zero_()
            target.zero_()
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_errors():
    with pytest.raises(ValueError, match=r"crop: expected \[height, width\] in pixels, got \[0, 5\]"):
        TrainTransform(crop=(0, 5))
    with pytest.raises(ValueError, match="size: expected"):
        EvalTransform(size=(3, 4, 5))
    for scale in ((2.0, 0.5), (0.0, 1.0)):
        with pytest.raises(ValueError, match="scale: expected a range"):
            TrainTransform(crop=None, scale=scale)


def only(**options):
    """A transform that does what is said and nothing else, into an output that holds the whole image."""
    return TrainTransform(**{"crop": (700, 700), "scale": (1, 1), "flip": False, "padding": "end", **options})


def sizes(transform, size, draws):
    """The sizes to which an image is resized, as far as they show in the output."""
    image, mask = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    found = set()
    for _ in range(draws):
        inside = transform(image, mask)[1] == 0
        found.add((int(inside.any(1).sum()), int(inside.any(0).sum())))
    return found


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.7, 2.1)])
def test_scale_step_draws_all_factors_from_the_least_to_the_largest(scale):
    # CIRKD: 0.5 + randint(0, 15) / 10; SKD: 0.7 + randint(0, 14) / 10; both ends of randint count.
    count = round((scale[1] - scale[0]) * 10) + 1
    expected = {(round(100 * (scale[0] + i / 10)),) * 2 for i in range(count)}
    assert sizes(only(scale=scale, scale_step=0.1), (100, 100), 400) == expected


def imrescale(size, edges, ratio):
    """The size that mmcv gives an image of size (H,W): `RandomResize` with one ratio, `keep_ratio=True`."""
    long, short = (int(edge * ratio) for edge in edges)
    factor = min(long / max(size), short / min(size))
    return tuple(int(side * float(factor) + 0.5) for side in size)


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (64, 64), (20, 200), (375, 500)])
@pytest.mark.parametrize("ratio", [0.5, 0.77, 1.0, 1.3, 2.0])
def test_fit_is_what_mmcv_does_with_a_scale(size, ratio):
    edges = (512, 128)
    assert sizes(only(crop=(1100, 1100), scale=(ratio, ratio), fit=edges), size, 1) == {imrescale(size, edges, ratio)}


def test_fit_makes_short_sides_of_256_to_1024():
    transform = TrainTransform(crop=(2048, 2048), fit=(2048, 512), padding="end")
    short = [min(size) for size in sizes(transform, (375, 500), 60)]
    assert 256 <= min(short) < 350
    assert 900 < max(short) <= 1024


def test_fit_agrees_with_the_worked_cases(standard):
    cases = json.loads((standard / "protocol_cases/resize_keep_ratio.json").read_text())["cases"]
    for case in (case for case in cases if case.get("scale")):
        size, expected = case["image_wh"][::-1], tuple(case["result_wh"][::-1])
        factor = TrainTransform(crop=(8, 8), scale=(1, 1), fit=tuple(case["scale"]))._factor(size)
        assert tuple(int(side * factor + 0.5) for side in size) == expected


def mmseg_crop(mask, crop, starts, most):
    """mmseg's `RandomCrop.crop_bbox`, with the places that were drawn."""
    boxes = ([round(s * (have - want)) for s, have, want in zip(at, mask.shape, crop, strict=True)] for at in starts)
    top, left = next(boxes)
    for _ in range(10):
        labels, counts = np.unique(mask[top : top + crop[0], left : left + crop[1]], return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and np.max(counts) / np.sum(counts) < most:
            break
        top, left = next(boxes)
    return top, left


def test_cat_max_ratio_takes_the_crop_that_mmseg_takes():
    rng = np.random.default_rng(0)
    tries = set()
    for seed in range(60):
        # Between one class with a few specks and a patchwork, with void: some crops pass at once, some never.
        mask = np.where(rng.random((16, 24)) < rng.choice([0.02, 0.1, 0.3]), rng.integers(1, 4, (16, 24)), 0)
        mask[rng.random((16, 24)) < 0.2] = 255
        mask = mask.repeat(4, 0).repeat(4, 1).astype(np.uint8)
        torch.manual_seed(seed)
        torch.rand(())  # the factor
        starts = torch.rand(11, 2).tolist()
        state = torch.random.get_rng_state()
        expected = mmseg_crop(mask, (16, 16), starts, 0.75)
        torch.manual_seed(seed)
        image = torch.stack([torch.arange(96).expand(64, 96), torch.arange(64).view(-1, 1).expand(64, 96)] * 2)[:3]
        only_crop = TrainTransform(crop=(16, 16), scale=(1, 1), flip=False, cat_max_ratio=0.75)
        out, target = only_crop(image.to(torch.uint8), torch.from_numpy(mask))
        top, left = round(float(out[1, 0, 0] * 255)), round(float(out[0, 0, 0] * 255))
        assert (top, left) == expected
        assert torch.equal(target, torch.from_numpy(mask[top : top + 16, left : left + 16]).long())
        assert torch.equal(torch.random.get_rng_state(), state)  # as many numbers are drawn, whatever the mask holds
        places = [(round(a * 48), round(b * 80)) for a, b in starts]
        tries.add(places.index(expected))
    assert 0 in tries
    assert 10 in tries
    assert len(tries) > 4


def hsv_pixels(image, change):
    """Apply a function of (h,s,v) in 0 … 1 to every pixel, by Python's own colorsys."""
    flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3).tolist()]
    return np.array(flat).reshape(image.shape)


def some_colours():
    """Random ones, and those where two or three components are equal, black and white."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (12, 16, 3))
    image[0] = image[0, :, :1]
    image[1, :, 1], image[2, :, 2], image[3, :, 0] = image[1, :, 0], image[2, :, 0], image[3, :, 2]
    image[4, :2], image[4, 2:4] = 0, 255
    return image


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor):
    image = some_colours() / 255
    expected = hsv_pixels(image, lambda h, s, v: (h, min(1, s * factor), v))
    out = saturate(torch.from_numpy(image).permute(2, 0, 1).float(), factor)
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("degrees", [-36, -2, 0, 34, 180])
def test_hue_is_that_of_hsv(degrees):
    image = some_colours() / 255
    expected = hsv_pixels(image, lambda h, s, v: ((h + degrees / 360) % 1, s, v))
    out = turn_hue(torch.from_numpy(image).permute(2, 0, 1).float(), degrees)
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), expected, atol=5e-6)


def mmseg_distortion(image, numbers):
    """`PhotoMetricDistortion.transform` by its definition, in float64, with the numbers that were drawn."""
    brightness, delta, mode, contrast, gain, saturation, depth, hue, turn = numbers

    def convert(image, alpha=1.0, beta=0.0):
        return np.clip(image * alpha + beta, 0, 255)

    def change_contrast(image):
        return convert(image, alpha=0.5 + gain) if contrast < 0.5 else image

    if brightness < 0.5:
        image = convert(image, beta=-32 + 64 * delta)
    if mode >= 0.5:
        image = change_contrast(image)
    if saturation < 0.5:
        image = 255 * hsv_pixels(image / 255, lambda h, s, v: (h, min(1, s * (0.5 + depth)), v))
    if hue < 0.5:
        step = math.floor(-18 + 36 * turn)  # randint(-18, 18), in the 180 steps that OpenCV gives the circle
        image = 255 * hsv_pixels(image / 255, lambda h, s, v: ((h + step / 180) % 1, s, v))
    return change_contrast(image) if mode < 0.5 else image


def test_distortion_is_mmsegs():
    image = some_colours()
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        numbers = torch.rand(9).tolist()
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        out = distort(torch.from_numpy(image).permute(2, 0, 1).to(torch.uint8)).permute(1, 2, 0).numpy()
        expected = mmseg_distortion(image.astype(np.float64), numbers)
        assert np.abs(out - expected).max() < 0.501  # bytes, rounded to the nearest
        assert torch.equal(torch.random.get_rng_state(), state)
        seen.add(tuple(number < 0.5 for number in numbers[::2]))
    assert len(seen) > 15  # of the 32 ways


def test_distortion_is_the_same_whatever_lies_beside():
    image = torch.randint(0, 256, (3, 70, 20), dtype=torch.uint8)  # more rows than are done at a time
    torch.manual_seed(1)
    whole = distort(image)
    torch.manual_seed(1)
    assert torch.equal(distort(image[:, 40:]), whole[:, 40:])


def test_mmseg_changes_colours_but_not_the_mask_and_is_done_before_padding():
    image, mask = ramp(32, 32)
    transform = only(crop=(40, 40), photometric="mmseg", fill=(0.1, 0.2, 0.3))
    outs = [transform(image, mask) for _ in range(8)]
    assert len({out[0].sum().item() for out in outs}) > 5
    for out, target in outs:
        assert torch.equal(target[:32, :32], mask.long())
        torch.testing.assert_close(out[:, 35, 35], torch.tensor([0.1, 0.2, 0.3]), rtol=0, atol=0)


def test_padding_at_the_end_and_mirrored():
    image, mask = torch.zeros(3, 10, 10, dtype=torch.uint8), torch.zeros(10, 10, dtype=torch.uint8)
    image[:, :, 0] = 255
    places = {}
    for padding in ("end", "mirrored"):
        transform = TrainTransform(crop=(16, 18), scale=(1, 1), padding=padding)
        for _ in range(30):
            out, target = transform(image, mask)
            flipped = bool(out[0, 0, 9] == 1) if padding == "end" else bool(out[0, 0, 17] == 1)
            inside = (target == 0).nonzero()
            places.setdefault((padding, flipped), set()).add((tuple(inside.min(0)[0].tolist()), len(inside)))
    assert places == {
        ("end", False): {((0, 0), 100)},
        ("end", True): {((0, 0), 100)},
        ("mirrored", False): {((0, 0), 100)},
        ("mirrored", True): {((0, 8), 100)},
    }


def write_pair(folder, image, mask, **how):
    """A set of one JPEG or PNG, and its mask."""
    for kind in ("images", "masks"):
        (folder / kind / "train").mkdir(parents=True)
    Image.fromarray(image).save(folder / "images/train" / how.pop("name", "a.jpg"), **how)
    Image.fromarray(mask).save(folder / "masks/train/a.png")
    return build_dataset("folder", "train", root=str(folder), classes=[str(index) for index in range(11)])


def photograph(height, width):
    """Smooth colours with some noise, and a mask of blocks."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 3))
    blocks = rng.integers(0, 11, (height // 40, width // 40), np.uint8).repeat(40, 0).repeat(40, 1)
    return image.clip(0, 255).astype(np.uint8), blocks


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_an_item_read_in_pieces_gives_the_same(tmp_path, name):
    dataset = write_pair(tmp_path, *photograph(240, 320), name=name)
    transform = TrainTransform(crop=(96, 128), photometric="mmseg", cat_max_ratio=0.75)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = transform(*dataset[0])
        torch.manual_seed(seed)
        images, masks = stack([transform.draw(dataset.source(0))]).numbers()
        assert torch.equal(images[0], expected[0])
        assert torch.equal(masks[0], expected[1])


def drafts(dataset, seeds, **options):
    """Pairs of crops of the same windows, read as a draft and from the image in full."""
    transform = TrainTransform(crop=(96, 128), draft=True, **options)
    for seed in seeds:
        torch.manual_seed(seed)
        read = transform.draw(dataset.source(0))
        torch.manual_seed(seed)
        yield read, transform.draw(Held(*dataset[0]))


@pytest.mark.parametrize("size", [(800, 1200), (803, 1205)])
def test_draft_reads_less_and_changes_little(tmp_path, size):
    down, right = size[0] - 800, size[1] - 1200  # rows and columns that fill no block
    image, mask = (np.pad(a, ((0, down), (0, right), (0, 0))[: a.ndim], "edge") for a in photograph(800, 1200))
    dataset = write_pair(tmp_path, image, mask, quality=90)
    asked = []
    original = dataset.read_part
    dataset.read_part = lambda path, box=None, reduce=1: asked.append(reduce) or original(path, box, reduce)
    for read, full in drafts(dataset, range(8), size=(160, 240), scale=(0.5, 1.5)):
        assert torch.equal(read.mask, full.mask)
        assert read.image.shape == full.image.shape
        difference = (read.image.float() - full.image.float()).abs()
        assert difference.mean() < 1.5
        assert difference.max() < 40
    assert set(asked[::2]) == {1, 2, 4}
    pixels, whole = original(dataset.images[0], (slice(0, 400), slice(80, 480)), 4)
    assert pixels.shape == (100, 100, 3)
    assert whole == size


def test_draft_keeps_the_place_of_what_is_seen(tmp_path):
    # Bright where the class is 1: at whatever size the image was decoded, it must still be.
    blocks = np.random.default_rng(0).integers(0, 2, (10, 15)).repeat(80, 0).repeat(80, 1).astype(np.uint8)
    dataset = write_pair(tmp_path, np.repeat(blocks[..., None] * 255, 3, 2), blocks, quality=95)
    for read, _ in drafts(dataset, range(12), size=(160, 240), scale=(0.5, 1.5)):
        clear = (read.image[0].float() - 127.5).abs() > 60
        assert clear.float().mean() > 0.8
        assert torch.equal(read.image[0][clear] > 127, read.mask[clear] == 1)


@pytest.mark.parametrize("kind", ["small", "png", "turned"])
def test_draft_leaves_alone_what_is_not_large_no_jpeg_or_not_upright(tmp_path, kind):
    how = {"small": {"quality": 90}, "png": {"name": "a.png"}, "turned": {"quality": 90, "exif": Image.Exif()}}[kind]
    if kind == "turned":
        how["exif"][274] = 3
    dataset = write_pair(tmp_path, *photograph(*((240, 320) if kind == "small" else (800, 1200))), **how)
    for read, full in drafts(dataset, range(4), scale=(0.6, 1.5), size=None if kind == "small" else (160, 240)):
        assert torch.equal(read.image, full.image)
        assert torch.equal(read.mask, full.mask)


def test_an_unlabelled_source_is_void_and_its_mask_is_not_read():
    class Blind(Held):
        def mask(self, box):
            raise AssertionError

    image, mask = ramp(40, 56)
    source = Unlabelled(Blind(image, mask))
    out = TrainTransform(crop=None, scale=(1, 1), flip=False).draw(source)
    assert torch.equal(out.image, image)
    assert (out.mask == 255).all()


def test_crops_of_a_batch_are_those_of_its_images():
    transform = TrainTransform(crop=(30, 40), fill=(0.1, 0.2, 0.3))
    torch.manual_seed(0)
    items = [ramp(20 + 5 * i, 60 - 8 * i) for i in range(4)]
    expected = [transform(*item) for item in items]
    torch.manual_seed(0)
    images, masks = stack([transform.draw(Held(*item)) for item in items]).numbers()
    for index, (image, mask) in enumerate(expected):
        assert torch.equal(images[index], image)
        assert torch.equal(masks[index], mask)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"scale_step": 0.4}, r"scale_step: 0.4 does not lead from 0.5 to 2.0"),
        ({"scale_step": -0.1}, "scale_step: -0.1 does not lead"),
        ({"fit": (512, 2048)}, r"fit: expected \[long, short\] in pixels, such as \[2048, 512\], got \[512, 2048\]"),
        ({"cat_max_ratio": 75}, "cat_max_ratio: expected a share between 0 and 1, such as 0.75, got 75"),
    ],
)
def test_more_errors(options, line):
    with pytest.raises(ValueError, match=line):
        TrainTransform(crop=None, **options)


def test_a_part_of_an_image_of_16_bits_or_turned_is_that_of_the_whole(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (60, 80), np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(photograph(64, 96)[0]).save(tmp_path / "b.png", exif=turned)
    box = (slice(10, 40), slice(5, 33))
    for name in ("a.png", "b.png"):
        whole = read_image(tmp_path / name)
        pixels, size = read_part(tmp_path / name, box, 2)
        assert np.array_equal(pixels, whole[box])
        assert size == whole.shape[:2]
        assert count_pixels(tmp_path / name) == size[0] * size[1]
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c.png: not a readable image"):
        count_pixels(tmp_path / "c.png")
