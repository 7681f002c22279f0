"""What this toolkit computes where the device has no float64 (Apple's MPS): the same, to float32's accuracy."""

import pytest
import torch

from no_float64 import Held, device_without_float64
from segdistill.functional import exact, has_float64
from segdistill.methods import build_method, list_methods
from segdistill.methods.fakd import ClassCovariance
from segdistill.metrics import image_counts, scores
from test_contract import CLASSES, make_taps

SPECS = [
    *(name for name in list_methods() if name not in ("none", "sstkd")),
    {"name": "local", "kind": "l2"},
    {"name": "skd", "pool": 1},
    {"name": "fakd", "full": True},
    {"name": "fakd", "base": "kd"},
    {"name": "i2ckd", "normalize": True},
    "sstkd",
]


@pytest.fixture
def device(monkeypatch):
    with device_without_float64(monkeypatch) as device:
        yield device


def run(spec, device, apart):
    """Terms and the student's gradients of one step, computed on a device."""
    torch.manual_seed(0)
    method = build_method(spec)
    teacher = make_taps(8)
    student = make_taps(8)
    if apart:
        student = {name: tap + apart * torch.randn_like(tap) for name, tap in teacher.items()}
    method.adapt(student, teacher)
    target = torch.randint(0, CLASSES, (2, 96, 128))
    target[:, :10] = 255
    method.to(device).train()
    student = {name: tap.to(device).detach().requires_grad_(name != "image") for name, tap in student.items()}
    terms = method(student, {name: tap.to(device) for name, tap in teacher.items()}, target.to(device), 0.5)
    sum(terms.values()).backward()
    gradients = {name: tap.grad.cpu() for name, tap in student.items() if tap.grad is not None}
    return {name: term.item() for name, term in terms.items()}, gradients


def test_the_device_is_one(device):
    assert not has_float64(device)
    assert has_float64(torch.device("cpu"))
    x = torch.ones(2, device=device, requires_grad=True)
    with pytest.raises(TypeError, match="no float64"):
        x.double()
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(2)
    assert exact(x).device.type == "cpu"
    assert exact(x).dtype == torch.float64
    exact(x).square().sum().backward()
    assert isinstance(x.grad, Held)
    assert x.grad.cpu().tolist() == [2.0, 2.0]


@pytest.mark.parametrize("apart", [0.0, 1e-3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_methods(spec, apart, device):
    terms, gradients = run(spec, device, apart)
    expected_terms, expected_gradients = run(spec, "cpu", apart)
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("full", [False, True])
def test_covariances_stay_exact(full, device):
    features, labels = 100 + torch.randn(2, 6, 4, 5), torch.randint(0, 3, (2, 4, 5))
    here, there = ClassCovariance(3, 6, full), ClassCovariance(3, 6, full).to(device)
    for _ in range(2):
        here.update(features, labels)
        there.update(features.to(device), labels.to(device))
    assert there.covariance.dtype == torch.float64
    torch.testing.assert_close(there.state_dict(), here.state_dict())
    there.load_state_dict(here.state_dict())


def test_scores(device):
    prediction, target = torch.randint(0, 3, (2, 8, 8))
    counts = image_counts(prediction.to(device), target.to(device), 3)
    torch.testing.assert_close(counts.cpu(), image_counts(prediction, target, 3))
    confusion = torch.randint(0, 9, (3, 3))
    assert scores(confusion.to(device), "abc") == scores(confusion, "abc")
