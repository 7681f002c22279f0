import pytest
import torch

from segdistill.models.families.isanet import InterlacedAttention, SelfAttention


def test_attention_is_a_softmax_average():
    module = SelfAttention(6, 4).eval()
    x = torch.rand(1, 6, 2, 3)
    query, key, value = module.query(x)[0].flatten(1), module.key(x)[0].flatten(1), module.value(x)[0].flatten(1)
    mixed = torch.stack([
        sum((query[:, i] @ key[:, j] / 2).exp() * value[:, j] for j in range(6))
        / sum((query[:, i] @ key[:, j] / 2).exp() for j in range(6))
        for i in range(6)
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(module(x), module.out(mixed.view(1, 6, 2, 3)))


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 4)])
def test_interlacing_equals_loops_over_groups(size):
    cell, module = 4, InterlacedAttention(5, 3, cell=4).eval()
    x = torch.rand(2, 5, *size)
    pad_h, pad_w = -size[0] % cell, -size[1] % cell
    top, left = pad_h // 2, pad_w // 2
    padded = torch.zeros(2, 5, size[0] + pad_h, size[1] + pad_w)
    padded[..., top : top + size[0], left : left + size[1]] = x
    far = torch.empty_like(padded)
    for i in range(cell):
        for j in range(cell):
            far[..., i::cell, j::cell] = module.far(padded[..., i::cell, j::cell])
    near = torch.empty_like(far)
    for i in range(0, far.shape[2], cell):
        for j in range(0, far.shape[3], cell):
            near[..., i : i + cell, j : j + cell] = module.near(far[..., i : i + cell, j : j + cell])
    torch.testing.assert_close(module(x), near[..., top : top + size[0], left : left + size[1]])


def test_every_pixel_sees_every_other():
    module = InterlacedAttention(16, 8, cell=4).eval()
    x = torch.rand(1, 16, 8, 8, requires_grad=True)
    module(x)[0, :, 1, 2].sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).all()
