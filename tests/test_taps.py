import copy

import pytest
import torch
from torch import nn

from segdistill.models import build_model
from segdistill.taps import Tapped, as_logits, as_map, match_maps, resize, resize_logits


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)
        self.unused = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return {"out": self.head(self.act(self.stem(x)))}


def test_taps_are_the_outputs_and_inputs_of_submodules():
    net, images = Net(), torch.rand(1, 3, 8, 8)
    taps = Tapped(net, {"low1": "act", "features": "head:input"}, classifier="head")(images)
    torch.testing.assert_close(taps["low1"], net.act(net.stem(images)))
    torch.testing.assert_close(taps["features"], taps["low1"])
    torch.testing.assert_close(taps["logits"], net.head(taps["features"]))
    assert taps["weight"].shape == (2, 4)
    assert taps["image"] is images


def test_only_what_is_asked_for():
    tapped = Tapped(Net(), {"low1": "act", "features": "head:input"})
    assert set(tapped(torch.rand(1, 3, 8, 8), {"features"})) == {"image", "output", "logits", "features"}


def test_hooks_do_not_outlive_the_call():
    tapped = Tapped(Net(), {"low1": "act"})
    tapped(torch.rand(1, 3, 8, 8))
    copy.deepcopy(tapped)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tapped.modules())
    with pytest.raises(RuntimeError):
        tapped(torch.rand(1, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tapped.modules())


def test_tensors_overwritten_in_place_are_refused():
    with pytest.raises(ValueError, match="'stem' is overwritten in place; tap its parent"):
        Tapped(Net(), {"low1": "stem"})(torch.rand(1, 3, 8, 8))


def dropping(inplace=False):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Dropout2d(0.5, inplace), nn.Conv2d(8, 2, 1)
    )
    return Tapped(net, {"features": "4:input"}, classifier="4")


def test_features_before_the_dropout_that_gives_them():
    tapped, images = dropping(), torch.rand(2, 3, 8, 8)
    taps = tapped(images, {"undropped", "features"})
    kept = taps["features"] != 0
    assert 0 < kept.sum() < (taps["undropped"] != 0).sum()
    torch.testing.assert_close(taps["features"][kept], 2 * taps["undropped"][kept])
    assert taps["undropped"].requires_grad
    assert not any(m._forward_hooks for m in tapped.modules())
    taps = tapped.eval()(images, {"undropped"})
    torch.testing.assert_close(taps["undropped"], taps["features"])
    assert "undropped" not in tapped(images)


def test_without_such_a_dropout_there_is_no_such_tap():
    assert "undropped" not in Tapped(Net(), {"features": "head:input"})(torch.rand(1, 3, 8, 8), {"undropped"})
    tapped = dropping()
    tapped.network[3] = nn.Identity()  # the other dropout does not give the features
    assert "undropped" not in tapped(torch.rand(1, 3, 8, 8), {"undropped"})


def test_a_dropout_in_place_is_refused():
    with pytest.raises(ValueError, match="works in place"):
        dropping(inplace=True)(torch.rand(1, 3, 8, 8), {"undropped"})


def test_logits_are_resized_in_single_precision():
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    resized = resize_logits(logits, (16, 16))
    assert torch.equal(resized, resize(logits.float(), (16, 16)))
    assert resize_logits(logits, (4, 4)) is logits
    assert resize_logits(logits.double(), (8, 8)).dtype == torch.float64


def test_gradients_flow_through_taps():
    net = Net()
    Tapped(net, {"low1": "act"})(torch.rand(1, 3, 8, 8))["low1"].sum().backward()
    assert net.stem.weight.grad is not None


def test_errors():
    with pytest.raises(ValueError, match="no submodule 'atc'"):
        Tapped(Net(), {"low1": "atc"})
    with pytest.raises(ValueError, match="no tap 'low2'"):
        Tapped(Net(), {"low1": "act"})(torch.rand(1, 3, 8, 8), {"low2"})
    with pytest.raises(ValueError, match="gives a dict, not a tensor"):
        Tapped(Net(), {"low1": ""})(torch.rand(1, 3, 8, 8))


def test_a_tap_that_does_not_run_is_an_error_only_if_asked_for():
    tapped = Tapped(Net(), {"low1": "unused"})
    assert "low1" not in tapped(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="did not run in the forward pass"):
        tapped(torch.rand(1, 3, 8, 8), {"low1"})


def test_logits_are_found_in_any_output():
    logits = torch.zeros(1, 2, 4, 4)
    for output in [logits, (logits, None), [logits], {"out": logits, "aux": 1}, {"logits": logits}]:
        assert as_logits(output) is logits
    for output in [None, {"a": logits}, torch.zeros(1, 2), ()]:
        with pytest.raises(ValueError, match=r"tap the layer|expected logits"):
            as_logits(output)


def test_the_smaller_map_is_resized():
    student = {"logits": torch.rand(1, 2, 4, 4).bfloat16(), "image": torch.rand(1, 3, 32, 32)}
    teacher = {"logits": torch.rand(1, 2, 8, 6), "image": torch.rand(1, 3, 32, 32)}
    s, t = match_maps(student, teacher)
    assert s["logits"].shape == t["logits"].shape == (1, 2, 8, 6)
    assert s["logits"].dtype == torch.float32
    s, t = match_maps(teacher, student)
    assert s["logits"].shape == t["logits"].shape == (1, 2, 8, 6)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_become_a_map_without_their_prefix(prefix):
    grid = torch.randn(2, 8, 4, 6)
    tokens = torch.cat([torch.full((2, prefix, 8), 99.0), grid.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(as_map(tokens, (64, 96)), grid)
    torch.testing.assert_close(as_map(tokens, (64, 96), prefix), grid)


def test_maps_stay_and_channels_go_first():
    grid = torch.randn(2, 8, 4, 6)
    assert as_map(grid, (64, 96)) is grid
    torch.testing.assert_close(as_map(grid.permute(0, 2, 3, 1), (64, 96)), grid)
    assert as_map(torch.randn(2, 8, 19, 14), (75, 53)).shape == (2, 8, 19, 14)  # rounded up
    for pooled in (1, 2, 3, 6):
        assert as_map(torch.randn(2, 8, pooled, pooled), (128, 192)) is None
    assert as_map(torch.randn(2, 8), (64, 96)) is None
    assert as_map(torch.randn(2, 10, 8), (64, 96), prefix=1) is None


class Tokens(nn.Module):
    """Layers that give tuples, tokens with two in front, and channels last."""

    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.pair, self.tokens, self.last, self.vector = (nn.Identity() for _ in range(4))

    def forward(self, x):
        grid = nn.functional.avg_pool2d(x, 8)
        self.pair((grid, None))
        tokens = grid.flatten(2).transpose(1, 2)
        self.tokens(torch.cat([tokens[:, :2] * 0, tokens], 1))
        self.last(grid.permute(0, 2, 3, 1))
        self.vector(grid.mean((2, 3)))
        return grid


def test_taps_of_any_layout_are_maps():
    images = torch.rand(1, 3, 64, 96)
    network = Tokens()
    taps = Tapped(network, {"pair": "pair", "tokens": "tokens", "last": "last"})(images)
    for name in ("pair", "tokens", "last"):
        torch.testing.assert_close(taps[name], taps["output"])
    with pytest.raises(ValueError, match=r"'vector' gives \(1, 3\), no map of the image"):
        Tapped(network, {"vector": "vector"})(images)


def test_taps_under_inference_mode():
    network = Tapped(build_model("pspnet_resnet18_quarter", num_classes=3)).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    with torch.inference_mode():
        found = network(images)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
