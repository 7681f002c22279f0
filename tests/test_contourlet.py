import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import GOLDEN
from segdistill.texture import (
    Contourlet,
    analysis_operations,
    contourlet,
    contourlet_energy,
    contourlet_operations,
    inverse_contourlet,
)
from segdistill.texture.contourlet import _analyse

NINE = (0.037828455506995, -0.02384946501938, -0.11062440441842, 0.37740285561265, 0.8526986790094)
SEVEN = (-0.064538882628938, -0.040689417609558, 0.41809227322221, 0.78848561640566)
PKVA = (0.6300, -0.1930, 0.0972, -0.0526, 0.0272, -0.0144)


def literal_contourlet(x: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, list[list[Tensor]]]:
    """The transform of one channel (H,W), step by step as the toolbox writes it."""
    bands = []
    for n in levels:
        low = filtered(x, mirrored(NINE), (4, 4), (4, 4))[::2, ::2]
        up = torch.zeros_like(x)
        up[::2, ::2] = low
        bands.append(directional(x - filtered(up, mirrored(SEVEN), (3, 3), (3, 3)), n))
        x = low
    return x, bands


def mirrored(half):
    return torch.tensor((*half, *half[-2::-1]), dtype=torch.float64)


def filtered(x, taps, before, after, quincunx=False):
    """Separable 'valid' filter after periodic extension; quincunx: beyond the rows, the columns are shifted by half."""
    (top, left), (bottom, right) = before, after
    i, j = torch.arange(-top, x.shape[0] + bottom)[:, None], torch.arange(-left, x.shape[1] + right)
    if quincunx:
        j = j + i.div(x.shape[0], rounding_mode="floor") * (x.shape[1] // 2)
    x = x[i % x.shape[0], j % x.shape[1]][None, None]
    taps = taps.to(x.dtype)
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[0, 0]


def split(x, kind):
    p0, p1 = polyphase(x, kind)
    ladder = torch.tensor((*PKVA[::-1], *PKVA), dtype=torch.float64) * torch.tensor([-1.0, 1.0] * 6)
    y0 = (p0 - filtered(p1, ladder, (6, 6), (5, 5), kind == "1r")) / math.sqrt(2)
    return y0, -math.sqrt(2) * p1 - filtered(y0, ladder, (5, 5), (6, 6), kind == "1r")


def polyphase(x, kind):
    if kind == "1r":
        u = shear(x, -1, 0)
        return shear(u[::2], 1, 1), shear(u[1::2].roll(-1, 1), 1, 1)
    if kind == "2c":
        u = shear(x, -1, 1)
        return shear(u[:, ::2], 1, 0), shear(u[:, 1::2].roll(-1, 0), 1, 0)
    if kind == 1:
        return shear(x[::2], 1, 1), shear(x[1::2].roll(-1, 1), 1, 1)
    if kind == 2:
        return shear(x[::2], -1, 1), shear(x[1::2], -1, 1)
    if kind == 3:
        return shear(x[:, ::2], 1, 0), shear(x[:, 1::2].roll(-1, 0), 1, 0)
    return shear(x[:, ::2], -1, 0), shear(x[:, 1::2], -1, 0)


def shear(x, step, dim):
    """Shift each column by its index (dim 0), or each row (dim 1)."""
    out = torch.empty_like(x)
    for k in range(x.shape[1 - dim]):
        out.select(1 - dim, k).copy_(x.select(1 - dim, k).roll(-step * k, 0))
    return out


def directional(x, n):
    a, b = split(x, "1r")
    bands = [*split(a, "2c")[::-1], *split(b, "2c")[::-1]]
    for _ in range(3, n + 1):
        half = len(bands) // 2
        kinds = [k % 2 + (1 if k < half else 3) for k in range(len(bands))]
        bands = [y for band, kind in zip(bands, kinds, strict=True) for y in split(band, kind)[::-1]]
    if n > 2:
        for k in range(1, 2 ** (n - 2) + 1):
            for index in (2 * k - 2, 2 * k - 1):
                step = 2 * k - (2 ** (n - 2) + 1)
                bands[index] = shear(bands[index], step, 1)
                bands[index + 2 ** (n - 1)] = shear(bands[index + 2 ** (n - 1)], step, 0)
    return bands[: len(bands) // 2] + bands[: len(bands) // 2 - 1 : -1]


def flat(coefficients: Contourlet) -> list[Tensor]:
    return [coefficients.low, *(band for bands in coefficients.bands for band in bands)]


@pytest.mark.parametrize(("tag", "levels"), [("analytic32", (4, 3)), ("noise32x48", (3, 2))])
def test_agrees_with_the_toolbox(tag, levels):
    golden = load_file(GOLDEN / "contourlet.safetensors")
    low, bands = contourlet(golden[f"{tag}.input"][None, None], levels)
    torch.testing.assert_close(low[0, 0], golden[f"{tag}.low"], rtol=0, atol=1e-10)
    assert [len(scale) for scale in bands] == [2**n for n in levels]
    for level, scale in enumerate(bands):
        for index, band in enumerate(scale):
            torch.testing.assert_close(band[0, 0], golden[f"{tag}.level{level}.band{index}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("levels", "size"),
    [((2,), (2, 4)), ((3,), (4, 8)), ((4,), (8, 24)), ((5,), (48, 16)), ((4, 3), (8, 8)), ((2, 5, 3), (32, 64))],
)
def test_agrees_with_the_literal_form(levels, size):
    x = torch.randn(size, dtype=torch.float64)
    low, bands = literal_contourlet(x, levels)
    for actual, expected in zip(flat(contourlet(x[None, None], levels)), flat(Contourlet(low, bands)), strict=True):
        torch.testing.assert_close(actual[0, 0], expected, rtol=0, atol=1e-12)


def test_gradcheck():
    x = torch.randn(1, 1, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(flat(contourlet(x, (3, 2)))), x)
    assert torch.autograd.gradcheck(lambda x: contourlet_energy(x, (2, 2)), x)
    low, *bands = (t.detach().requires_grad_() for t in flat(contourlet(x, (3,))))
    assert torch.autograd.gradcheck(
        lambda low, *bands: inverse_contourlet(Contourlet(low, [list(bands)])), (low, *bands)
    )


def test_second_derivative():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: contourlet(x, (2,)).bands[0][1].pow(3), x)


@pytest.mark.parametrize("levels", [(2,), (5,), (4, 3), (3, 2), (4, 3, 2), (2, 2, 5)])
@pytest.mark.parametrize("size", [(64, 32), (45, 61), (1, 1), (2, 37)])
def test_the_inverse_gives_the_map_back(levels, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    coefficients = contourlet(x, levels)
    assert (inverse_contourlet(coefficients) - x).abs().max() <= 1e-12
    assert all(t.shape[:2] == (2, 3) for t in flat(coefficients))


def test_a_constant_has_no_texture():
    _, bands = contourlet(torch.full((1, 1, 32, 32), 3.0, dtype=torch.float64))
    assert max(band.abs().max() for scale in bands for band in scale) < 1e-9


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("cycles", [6, 12])
def test_stripes_along_rows_and_columns_are_in_different_halves(dim, cycles):
    wave = torch.cos(2 * math.pi * cycles / 32 * torch.arange(32))
    x = wave[:, None].expand(32, 32) if dim == 0 else wave.expand(32, 32)
    _, (fine, coarse) = contourlet(x[None, None])
    for scale in (fine, coarse):
        energy = torch.stack([band.square().sum() for band in scale])
        own, other = energy.chunk(2) if dim == 1 else reversed(energy.chunk(2))
        assert own.sum() > 20 * other.sum()


def test_float32_is_close_to_float64():
    x = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    for single, double in zip(flat(contourlet(x.float())), flat(contourlet(x)), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_images_and_channels_are_transformed_alone_in_any_memory_format():
    x = torch.randn(2, 3, 16, 24)
    before = x.clone()
    together = flat(contourlet(x.to(memory_format=torch.channels_last), (3, 2)))
    for n in range(2):
        for a in range(3):
            for one, all_ in zip(flat(contourlet(x[n : n + 1, a : a + 1], (3, 2))), together, strict=True):
                torch.testing.assert_close(one[0, 0], all_[n, a])
    assert torch.equal(x, before)


def test_single_maps_in_positions_first_memory_are_left_alone():
    x = torch.randn(16, 16, 1, 4).permute(2, 3, 0, 1).requires_grad_()  # what the transform works in
    before = x.detach().clone()
    contourlet_energy(x).backward()
    assert torch.equal(x.detach(), before)


def test_energy_is_the_mean_over_subbands_of_each_ones_mean():
    x = torch.randn(2, 3, 16, 32)
    bands = flat(contourlet(x))[1:]
    torch.testing.assert_close(contourlet_energy(x), sum(band.square().mean() for band in bands) / 24)


def test_half_precision_is_upcast_under_autocast_also_on_the_way_back():
    x = torch.randn(1, 2, 16, 16)
    expected, actual = x.clone().requires_grad_(), x.clone().requires_grad_()
    contourlet_energy(expected).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contourlet_energy(actual).backward()
        assert contourlet(x.bfloat16()).low.dtype == torch.float32
    torch.testing.assert_close(actual.grad, expected.grad)


def test_a_size_that_is_first_seen_in_inference_mode_can_be_trained_later():
    x = torch.randn(1, 1, 8, 40)
    with torch.inference_mode():
        contourlet(x)
    contourlet_energy(x.requires_grad_()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
def test_compiles_without_a_graph_break():
    x = torch.randn(1, 4, 20, 32).requires_grad_()
    same = x.detach().clone().requires_grad_()
    loss = torch.compile(contourlet_energy, fullgraph=True)(x)
    loss.backward()
    contourlet_energy(same).backward()
    torch.testing.assert_close(x.grad, same.grad)
    back = torch.compile(lambda x: inverse_contourlet(contourlet(x)), fullgraph=True)(x)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"expected a non-empty \(N,A,H,W\)"):
        contourlet(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="one to three numbers from 2 to 5"):
        contourlet(torch.zeros(1, 1, 8, 8), levels=(6,))
    with pytest.raises(ValueError, match="one to three numbers from 2 to 5"):
        contourlet(torch.zeros(1, 1, 8, 8), levels=())
    with pytest.raises(ValueError, match="4, 8, 16 or 32"):
        inverse_contourlet(Contourlet(torch.zeros(1, 1, 4, 4), [[torch.zeros(1, 1, 4, 4)] * 3]))


@pytest.mark.parametrize(("size", "levels"), [((16, 32), 4), ((32, 16), 3), ((8, 8), 2)])
def test_operations_are_those_of_the_matrix_products(size, levels):
    def in_place(_into, a, b, **_):  # which the counter does not know
        return 2 * a[0] * a[1] * a[2] * b[2]

    mapping = {torch.ops.aten.baddbmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:  # inside the operator, opaque otherwise
        _analyse._init_fn(torch.rand(*size, 2, 3), levels, False)
    assert counter.get_total_flops() == 2 * 6 * analysis_operations(*size, levels, dense=True)


def test_taps_are_few_beside_the_matrices():
    # 12 multiply-adds of the pyramid, 24 of each level of the bank; the second scale has a quarter of the pixels.
    assert contourlet_operations(256, 512) == 256 * 512 * (12 + 4 * 24 + (12 + 3 * 24) / 4)
    assert contourlet_operations(60, 57) == contourlet_operations(64, 64)
    assert contourlet_operations(64, 128, dense=True) > 2 * contourlet_operations(64, 128)
