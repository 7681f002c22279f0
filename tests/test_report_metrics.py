"""What the report shows of further metrics: their table, their figures, and the splits beside val."""

import json

import numpy as np
import pytest

from segdistill.metrics import build_metric, list_metrics, metric_class
from segdistill.report import write_report
from segdistill.report.collect import Spread
from segdistill.report.figures import Album
from segdistill.report.metrics import find_metrics, lines, metric_figures
from segdistill.report.study import read_study
from test_metric_catalogue import show, small_case
from test_report import NAMES, check_page, write_run


def results(seed, only=None):
    """What each metric gives of a small case."""
    logits, target, teacher = small_case(seed, classes=len(NAMES), size=(40, 50), images=3, blocks=8)
    found = {}
    for name in only or list_metrics():
        metric = build_metric(name, NAMES)
        show(metric, logits, target, teacher)
        found[name] = metric.compute()
    return json.loads(json.dumps(found))


def leave(folder, split, metrics, miou=0.5):
    """What `eval` leaves in a run's folder."""
    values = {"miou": miou, "iou": dict.fromkeys(NAMES, miou), "metrics": metrics}
    (folder / f"eval_{split}.json").write_text(json.dumps(values))


@pytest.fixture
def runs(tmp_path):
    teacher = write_run(tmp_path / "teacher", level=0.4)
    folders = [write_run(tmp_path / f"none_seed{seed}", seed=seed) for seed in (0, 1)]
    folders += [write_run(tmp_path / f"cwd_seed{s}", "cwd", seed=s, level=0.3, teacher=teacher) for s in (0, 1)]
    for seed, folder in enumerate([teacher, *folders]):
        leave(folder, "val", results(seed))
    return tmp_path


def test_the_page_shows_all_of_them(runs):
    leave(runs / "none_seed0", "train", None, 0.81)
    page = write_report([runs], images=0, figures="svg")
    _, text = check_page(page)
    assert "Beyond mean IoU" in text
    for name in list_metrics():
        for title in (headline.title for headline in metric_class(name).headlines.values()):
            assert title in text
    for name in ("reliability", "trimap", "images", "sizes", "errors"):
        assert (page.parent / f"figures/{name}.svg").is_file()
    assert "train mIoU %" in text
    assert "81.00" in text
    assert "test mIoU %" not in text


def test_figures_are_means_over_seeds(runs):
    study = read_study([runs])
    found = find_metrics(study)
    assert found.split == "val"
    assert [group.label for group in found.groups] == ["teacher", "baseline", "cwd"]
    table = {line.headline.title: line for line in lines(found)}
    values = [results(seed)["calibration"] for seed in (1, 2)]
    spread = table["calibration error %"].cells[1]
    assert spread == Spread.of([value["ece"] for value in values])
    assert table["calibration error %"].headline.share
    assert not table["NLL"].headline.share
    assert found.means(found.groups[2], "trimap", "miou") == pytest.approx(
        np.mean([results(seed)["trimap"]["miou"] for seed in (3, 4)], 0)
    )


def test_bins_are_brought_together_by_their_pixels(runs):
    from segdistill.report.metrics import _bins

    for folder, pixels, accuracy in (("cwd_seed0", [100, 0], [1.0, None]), ("cwd_seed1", [300, 100], [0.2, 0.5])):
        bins = {"pixels": pixels, "confidence": [0.5, 0.9 if pixels[1] else None], "accuracy": accuracy}
        leave(runs / folder, "val", {"calibration": {"ece": 0.1, "nll": 1.0, "brier": 1.0, "bins": bins}})
    found = find_metrics(read_study([runs]))
    confidence, right, shares = _bins(found, found.groups[2])
    assert confidence == pytest.approx([0.5, 0.9])
    assert right == pytest.approx([0.4, 0.5])
    assert shares == pytest.approx([0.8, 0.2])


def test_the_split_that_most_runs_have_is_shown(runs):
    for folder in runs.glob("*_seed*"):
        (folder / "eval_val.json").unlink()
        leave(folder, "test", {"boundary": {"miou": 0.25}})
    found = find_metrics(read_study([runs]))
    assert (found.split, len(found.groups)) == ("test", 2)
    assert [line.headline.title for line in lines(found)] == ["boundary IoU %"]
    assert metric_figures(Album(runs / "figures"), found) == []


def test_without_metrics_there_is_no_section(tmp_path):
    _, text = check_page(write_report([write_run(tmp_path / "none")], images=0))
    assert "Beyond mean IoU" not in text


DAMAGE = [
    {"trimap": None},
    {"trimap": {"widths": [1, 2], "miou": [0.1]}},
    {"trimap": {"widths": "wide", "miou": {"a": 1}}},
    {"calibration": {"ece": "low", "bins": 3}},
    {"calibration": {"bins": {"pixels": [1, 2], "confidence": [0.5], "accuracy": []}}},
    {"calibration": {"bins": {"pixels": [0, 0], "confidence": [None, None], "accuracy": [None, None]}}},
    {"images": {"deciles": [0.5]}, "sizes": [], "agreement": {"corrected": 0.5, "repeated": float("nan")}},
    {"something": {"new": 1}},
]


@pytest.mark.parametrize("metrics", DAMAGE, ids=str)
def test_what_is_not_as_it_should_be_is_left_out(runs, metrics):
    for folder in runs.glob("cwd_*"):
        leave(folder, "val", metrics)
    check_page(write_report([runs], images=0))


def test_metrics_that_are_no_mapping_are_named(runs):
    leave(runs / "cwd_seed0", "val", [1])
    with pytest.raises(ValueError, match=r"eval_val\.json: metrics is \[1\], expected a mapping"):
        read_study([runs])
