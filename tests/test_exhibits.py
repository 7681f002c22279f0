"""What methods show of trained networks, and how the report draws it."""

import pytest
import torch

from segdistill import distill, list_methods
from segdistill.methods import Method, build_method, method_class
from segdistill.methods._critic import Critic
from segdistill.methods.fakd import logit_variance
from segdistill.report import write_report
from test_analysis import DATA, run_config, taps
from test_report import check_page

SHOWING = [name for name in list_methods() if method_class(name).exhibits is not Method.exhibits]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A teacher, a baseline, and a student of all methods that show something."""
    root = tmp_path_factory.mktemp("exhibits")
    config = {"data": DATA, "student": {"name": "deeplabv3_resnet18_quarter"}, "train": run_config("", "none")["train"]}
    distill(config, out=root / "teacher")
    alone = run_config(root / "teacher", "none")
    distill({**alone, "teacher": None}, out=root / "none")
    sstkd = {"name": "sstkd", "statistical_weight": 0.0, "holistic_weight": 0.0}
    distill(run_config(root / "teacher", ["skd", "fakd", sstkd]), out=root / "all")
    return root


def prepared(name, **options):
    method = build_method({"name": name, **options})
    student, known = taps(8), taps(16)
    method.adapt(student, known)
    return method.eval(), student, known


def test_three_methods_show_their_papers_figures():
    assert SHOWING == ["fakd", "skd", "sstkd"]


@pytest.mark.parametrize("name", list_methods())
def test_exhibits_are_numbers_or_maps_of_each_image_and_change_nothing(name):
    method, student, known = prepared(name)
    critic = method.make_critic()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    target = torch.randint(0, 5, (2, 48, 64))
    others = {"teacher": known, "baseline": taps(8), "blind": {}}
    random = torch.get_rng_state()
    with torch.no_grad():
        shown = method.exhibits(student, others, target, critic)
    assert bool(shown) == (name in SHOWING)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    for exhibit in shown:
        assert exhibit.title
        assert exhibit.note.endswith(".")
        assert set(exhibit.common) <= set(exhibit.values)
        assert len({value.dim() for value in exhibit.values.values()}) == 1
        assert all(len(value) == 2 and value.isfinite().all() for value in exhibit.values.values())
    assert len({exhibit.title for exhibit in shown}) == len(shown)


def test_skd_shows_its_critics_scores():
    method, student, known = prepared("skd")
    (critic,) = method.make_critic().values()
    assert isinstance(critic, Critic)
    others = {"teacher": known, "other": {"logits": torch.rand(2, 3, 6, 8)}}
    (exhibit,) = method.methods["skd"].exhibits(student, others, None, critic)
    assert list(exhibit.values) == ["teacher", "student"]  # a network of other classes has no score
    for name, seen in (("teacher", known), ("student", student)):
        scores = critic(critic.maps(seen["logits"]), student["image"])
        torch.testing.assert_close(exhibit.values[name], scores)
    assert method.methods["skd"].exhibits(student, {"teacher": known}, None, None) == []


def test_fakd_shows_what_the_covariance_adds():
    method, student, known = prepared("fakd", strength=2.0, temperature=0.5)
    fakd = method.methods["fakd"]
    fakd.statistics.update(student["features"], torch.randint(0, 5, (2, 6, 8)))
    target = torch.randint(0, 4, (2, 6, 8))  # class 4 is not in the images
    target[:, 0] = 255
    (exhibit,) = fakd.exhibits(student, {"teacher": known, "baseline": taps(8)}, target)
    assert list(exhibit.values) == ["teacher", "without the covariance", "with the covariance", "what it adds"]
    known_classes = dict(weight=student["weight"], covariance=fakd.statistics.covariance, scale=2.0)
    added = logit_variance(target, **known_classes) / (2 * 0.5)
    assert not exhibit.values["what it adds"][:, 0].any()
    for n in range(2):
        chosen = int(added[n, :4].var((1, 2)).argmax())
        torch.testing.assert_close(exhibit.values["what it adds"][n], added[n, chosen])
        torch.testing.assert_close(exhibit.values["without the covariance"][n], student["logits"][n, chosen])
        torch.testing.assert_close(exhibit.values["with the covariance"][n], (student["logits"] + added)[n, chosen])
        torch.testing.assert_close(exhibit.values["teacher"][n], known["logits"][n, chosen])


def test_sstkd_shows_low_level_features_of_those_that_have_them():
    method, student, known = prepared("sstkd")
    shown = method.methods["sstkd"].exhibits(student, {"teacher": known, "blind": {}}, None)
    assert [exhibit.title for exhibit in shown] == ["Low-level features: low1", "Low-level features: low2"]
    torch.testing.assert_close(shown[0].values["student"], student["low1"].mean(1))
    assert list(shown[1].values) == ["teacher", "student"]


def test_the_page_has_them(root):
    lines = []
    page = write_report([root / "none", root / "all"], images=1, figures="png", say=lines.append)
    text = check_page(page)[1]
    for title in ("The critic's scores", "Activations with and without the covariance", "Low-level features: low1"):
        assert f"{title}: skd + fakd + sstkd" in text
    assert "Gain by image against the baseline's mIoU" in text
    assert len(list((page.parent / "figures").glob("exhibit_*.png"))) == 4


def test_a_run_without_its_checkpoint_is_named_and_the_rest_is_there(root):
    file = root / "all/checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    try:
        text = check_page(write_report([root / "none", root / "all"], images=1))[1]
        assert "Nothing shown of skd + fakd + sstkd by its method: " in text
        assert "checkpoint.pt cannot be read: it is damaged" in text
        assert "Gain by image against the baseline" in text  # the networks were looked at all the same
    finally:
        file.write_bytes(whole)


def test_what_was_learned_is_that_of_the_run(root):
    from segdistill.report.exhibits import _exhibitors, _trained_method
    from segdistill.report.inference import survey
    from segdistill.report.study import read_study

    study = read_study([root / "none", root / "all"])
    (group,) = _exhibitors(study)
    with survey(study, "cpu", lambda line: None) as found:
        method, critic = _trained_method(found, group, "teacher")
    state = torch.load(root / "all/checkpoint.pt", weights_only=True)
    assert int(state["distiller"]["method.methods.fakd.statistics.count"].sum()) > 0
    for key, value in method.state_dict().items():
        assert torch.equal(value, state["distiller"][f"method.{key}"]), key
    assert critic.state_dict().keys() == state["critic"].keys()
    assert all(torch.equal(value, state["critic"][key]) for key, value in critic.state_dict().items())
