import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from segdistill.models import build_model
from segdistill.models.families import hrnet
from segdistill.models.families.hrnet import SIZES, Exchange, HighResolution, Transition


@pytest.mark.parametrize("name", SIZES)
def test_layers_are_timms(name):
    with torch.device("meta"):
        ours = HighResolution(SIZES[name]).body.state_dict()
        theirs = timm.create_model(SIZES[name].timm_name, features_only=True, feature_location="").state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in ours)


def test_maps_are_timms_but_for_the_resizing(monkeypatch):
    theirs = timm.create_model("hrnet_w18_small_v2", features_only=True, feature_location="").double().eval()
    ours = HighResolution(SIZES["hrnet_w18_small"]).double().eval()
    ours.body.load_state_dict(theirs.state_dict())
    monkeypatch.setattr(hrnet, "resized", lambda x, like: F.interpolate(x, size=like.shape[-2:], mode="nearest"))
    images = torch.rand(1, 3, 64, 96).double()
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images)[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_pretrained_from_a_file(tmp_path):
    source = timm.create_model("hrnet_w18_small_v2", num_classes=2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    network = build_model("hrnet_w18_small", num_classes=3, pretrained=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(network.backbone.body.conv1.weight, source.conv1.weight)
    assert not network.spec["pretrained"]


def test_exchange_sums_all_branches():
    module = Exchange([4, 8], 1).eval()
    fine, coarse = torch.rand(1, 4, 5, 7), torch.rand(1, 8, 3, 4)
    a, b = module.branches[0](fine), module.branches[1](coarse)
    up = F.interpolate(module.fuse_layers[0][1](b), size=(5, 7), mode="bilinear", align_corners=False)
    expected = F.relu(a + up), F.relu(module.fuse_layers[1][0](a) + b)
    for got, wanted in zip(module([fine, coarse]), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_transition_starts_a_branch_from_the_coarsest():
    module = Transition([4, 8], [4, 8, 16])
    assert isinstance(module[0], nn.Identity)
    maps = module([torch.rand(2, 4, 9, 9), torch.rand(2, 8, 5, 5)])
    assert [tuple(x.shape[1:]) for x in maps] == [(4, 9, 9), (8, 5, 5), (16, 3, 3)]


def test_errors():
    with pytest.raises(ValueError, match="no model 'hrnet_w19'; did you mean hrnet_w"):
        build_model("hrnet_w19", num_classes=3)
    with pytest.raises(ValueError, match="hrnet has no option 'aux'"):
        build_model("hrnet_w48", num_classes=3, aux=True)
