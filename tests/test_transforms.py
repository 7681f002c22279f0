import pytest
import torch

from segdistill.data.transforms import EvalTransform, TrainTransform


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
