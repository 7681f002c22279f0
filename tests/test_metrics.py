import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.metrics import confusion_matrix, scores


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_agree_with_loops(seed, classes):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, 5, 7)), rng.integers(0, classes, (2, 5, 7))
    truth[rng.random(truth.shape) < 0.2] = 255
    counter = confusion_matrix(classes)
    for i in range(2):
        counter.update(torch.from_numpy(predicted[i]), torch.from_numpy(truth[i]))
    names = [str(c) for c in range(classes)]
    result = scores(counter.confmat, names)
    keep = truth != 255
    for c, name in enumerate(names):
        inter = ((truth == c) & (predicted == c) & keep).sum()
        union = (((truth == c) | (predicted == c)) & keep).sum()
        assert result["iou"][name] == (pytest.approx(inter / union) if union else None)
    assert result["pixel_accuracy"] == pytest.approx((truth == predicted)[keep].mean())
    known = [v for v in result["iou"].values() if v is not None]
    assert result["miou"] == pytest.approx(np.mean(known))


def test_absent_classes_are_none_and_leave_the_mean():
    result = scores(torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert result["iou"]["c"] is None
    assert result["miou"] == 1.0


def test_absent_classes_may_count_as_zero():
    confusion = torch.tensor([[4, 0, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    skip, zero = (scores(confusion, ["a", "b", "predicted", "absent"], absent) for absent in ("skip", "zero"))
    assert skip["miou"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert zero["miou"] == pytest.approx((1 + 0.75 + 0 + 0) / 4)
    assert skip["iou"] == zero["iou"] == {"a": 1.0, "b": 0.75, "predicted": 0.0, "absent": None}
    assert skip["macc"] == zero["macc"] == pytest.approx((1 + 0.75) / 2)
    assert scores(torch.zeros(2, 2), ["a", "b"], "zero")["miou"] == 0.0


def test_nothing_counted():
    result = scores(torch.zeros(2, 2), ["a", "b"])
    assert result["miou"] is None
    assert result["pixel_accuracy"] is None


def test_errors():
    with pytest.raises(ValueError, match="expected 2×2"):
        scores(torch.zeros(3, 3), ["a", "b"])
    with pytest.raises(ValueError, match="absent: expected skip or zero, got 'nan'"):
        scores(torch.zeros(2, 2), ["a", "b"], "nan")
