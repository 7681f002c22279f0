import shutil
import sys
from functools import partial

import pytest
import torch
from PIL import Image

from conftest import REPOSITORY
from segdistill.data import build_dataset
from segdistill.engine.student import make_card, save_student
from segdistill.models import build_model
from segdistill.report import texture_pictures
from segdistill.report.texture_pictures import draw_textures
from segdistill.report.textures import REGIONS, atoms, histograms, orientations, read_textures
from segdistill.texture import box_variance

STUDENT = "pspnet_resnet18_quarter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A street, and three untrained networks in the place of runs."""
    root = tmp_path_factory.mktemp("textures")
    image, _ = build_dataset("synthetic", "val", size=(96, 160), images=1)[0]
    Image.fromarray(image.permute(1, 2, 0).numpy() if image.shape[0] == 3 else image.numpy()).save(root / "street.png")
    for run, name in (("model", "quarter"), ("baseline", "quarter"), ("teacher", "half")):
        network = build_model(f"pspnet_resnet18_{name}", num_classes=2)
        (root / run).mkdir()
        card = make_card(network, ["a", "b"], [(0, 0, 0), (255, 0, 0)], method=["sstkd" if run == "model" else "none"])
        save_student(root / run / "student.safetensors", network, card)
    return root


@pytest.fixture(scope="module")
def textures(folder):
    paths = {role: folder / role for role in ("teacher", "baseline")}
    return read_textures(folder / "street.png", folder / "model", **paths)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setitem(texture_pictures.STYLE, "savefig.dpi", 40)  # pixels are most of the time


@pytest.fixture
def segdistill(segdistill):
    return partial(segdistill, "textures")


@pytest.mark.parametrize(("scale", "count"), [(0, 16), (1, 8)])
def test_orientations_are_those_of_stripes(scale, count):
    angles = orientations(scale)
    assert angles.shape == (count,)
    # Half of the directions run rather along the columns, the other half rather along the rows.
    upright = (angles > 45) & (angles < 135)
    assert upright.sum() == count // 2
    assert upright[: count // 2].all()
    assert (angles.sort().values.diff() > 2).all()
    # The pattern of the steepest direction changes along the rows much more than along the columns.
    pattern = atoms(scale)[(angles - 90).abs().argmin()]
    assert pattern.diff(dim=1).square().sum() > 5 * pattern.diff(dim=0).square().sum()


def test_energies_are_those_of_the_direction_in_the_features(textures):
    network = textures.networks["model"]
    assert list(textures.networks) == ["baseline", "model", "teacher"]
    assert network.name == "pspnet_resnet18_quarter, sstkd"
    assert textures.networks["baseline"].name == "pspnet_resnet18_quarter"
    assert network.low1.shape == (24, 40)
    assert network.low2.shape == (12, 20)
    assert [len(scale) for scale in network.bands] == [16, 8]
    torch.testing.assert_close(network.stages.square().mean((0, 2, 3)).max(), torch.tensor(1.0), rtol=1e-3, atol=0)
    assert all((network.energies(scale) > 0).all() for scale in (0, 1))


def test_regions_are_the_teachers_most_of_them_where_it_varies(textures):
    regions = textures.regions
    assert regions.source == "pspnet_resnet18_half"
    torch.testing.assert_close(regions.importance, textures.networks["teacher"].stages[0].mean(0))
    assert (len(regions.important), len(regions.uniform)) == (48, REGIONS - 48)
    important, uniform = (
        box_variance(regions.importance[None], boxes[None]).mean() for boxes in (regions.important, regions.uniform)
    )
    assert important > 0
    assert uniform > 0
    assert (regions.important == textures.box).all(1).any()


def test_histograms_show_what_levels_and_denoising_do():
    similarity = torch.cat([0.9 + 0.01 * torch.randn(400), torch.rand(100)]).clamp(-1, 1)
    found = histograms(similarity)
    assert found["heuristic"].entropy > found["uniform"].entropy
    for histogram in found.values():
        torch.testing.assert_close(histogram.counts.sum(), torch.tensor(1.0))
        torch.testing.assert_close(histogram.denoised.sum(), torch.tensor(1.0))
        assert histogram.denoised.max() < histogram.counts.max()


def test_pictures_are_written(textures, tmp_path):
    files = draw_textures(textures, tmp_path / "new" / "folder")
    names = ["features", "contourlet_baseline", "contourlet_model", "contourlet_teacher", "directions", "regions"]
    assert [file.name for file in files] == [f"{name}.png" for name in [*names, "quantisation"]]
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 75
            assert len(picture.convert("RGB").getcolors(2**24)) > 100


def test_the_command_draws_one_model_alone(folder, tmp_path, segdistill):
    status, out, err = segdistill(
        folder / "street.png", "--model", folder / "model", "--size", 64, 96, "--out", tmp_path
    )
    assert status == 0, err
    assert "contourlet_model.png" in out
    names = {"features", "contourlet_model", "directions", "regions", "quantisation"}
    assert {file.stem for file in tmp_path.iterdir()} == names


def test_mistakes_are_one_line(folder, tmp_path, segdistill, monkeypatch):
    street, model = folder / "street.png", folder / "model"
    Image.new("RGB", (200, 40)).save(tmp_path / "flat.png")
    (tmp_path / "text.png").write_text("not an image")
    for arguments, message in (
        ((tmp_path / "missing.png", "--model", model), "no image at"),
        ((tmp_path, "--model", model), "give one image file"),
        ((tmp_path / "text.png", "--model", model), "not a readable image"),
        ((tmp_path / "flat.png", "--model", model), "40×200 is too small"),
        ((street, "--model", model, "--size", 32, 32), "64×64 is the least"),
        ((street, "--model", tmp_path / "nothing"), "no student at"),
        ((street, "--model", model, "--teacher", tmp_path / "nothing"), "no student at"),
        ((street,), "Missing option"),
    ):
        status, _, err = segdistill(*arguments)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    with monkeypatch.context() as deaf:
        deaf.setattr(type(build_model(STUDENT, num_classes=2)), "taps", {"logits": "classifier"}, raising=False)
        status, _, err = segdistill(street, "--model", model)
    assert (status, "has no taps low1 and low2 but logits" in err) == (2, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = segdistill(street, "--model", model, "--out", tmp_path)
    assert (status, "segdistill[report]" in err) == (2, True)


def test_taps_are_those_of_the_runs_configuration(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "model", run)
    section = "{name: pspnet_resnet18_quarter, taps: {low1: backbone.low2}}"
    (run / "config.yaml").write_text(f"data: {{name: synthetic}}\nstudent: {section}\n")
    network = read_textures(folder / "street.png", run).networks["model"]
    assert network.low1.shape == network.low2.shape == (12, 20)


def test_help_has_an_example(segdistill):
    status, out, _ = segdistill("--help")
    assert status == 0
    assert "segdistill textures street.jpg" in out


def test_the_pages_pictures_are_there_and_small():
    page = (REPOSITORY / "docs/methods/sstkd.md").read_text()
    pictures = sorted((REPOSITORY / "docs/methods/img").glob("sstkd_*"))
    assert pictures
    for picture in pictures:
        assert f"img/{picture.name}" in page
        assert picture.stat().st_size <= 150_000
