"""Augmentations by name, and the keys of a configuration that they set."""

import pytest
import torch

from segdistill.data.augmentations import AUGMENTATIONS, augmentation
from segdistill.engine.build import build_transform
from segdistill.engine.config import dump_config, load_config, read_config
from segdistill.engine.settings import fixed_settings

STUDENT = {"name": "pspnet_resnet18"}


def data(**keys):
    return load_config({"data": {"name": "synthetic", **keys}, "student": STUDENT}).data


def test_each_is_a_transform():
    for name in AUGMENTATIONS:
        transform = build_transform(data(augmentation=name, crop=[64, 96]))
        image, mask = torch.zeros(3, 100, 120, dtype=torch.uint8), torch.ones(100, 120, dtype=torch.uint8)
        out, target = transform(image, mask)
        assert out.shape == (3, 64, 96)
        assert set(target.unique().tolist()) <= {1, 255}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        # CSTrainValSet: 0.5 + randint(0, 15) / 10, padded below and right, then cropped, then mirrored
        ("cirkd", {"scale": (0.5, 2.0), "scale_step": 0.1, "padding": "mirrored", "photometric": False}),
        # CSDataSet: 0.7 + randint(0, 14) / 10, the rest alike
        ("skd", {"scale": (0.7, 2.1), "scale_step": 0.1, "padding": "mirrored", "flip": True}),
        ("cwd", {"scale": (1.0, 1.0), "flip": False, "padding": "mirrored"}),
        ("mmseg", {"scale": (0.5, 2.0), "fit": (2048, 512), "cat_max_ratio": 0.75, "photometric": "mmseg"}),
        ("mmseg_cityscapes", {"fit": (2048, 1024), "padding": "end", "scale_step": None}),
        ("mmseg_context", {"fit": (520, 520)}),
    ],
)
def test_what_each_sets(name, keys):
    loaded = data(augmentation=name)
    assert {key: getattr(loaded, key) for key in keys} == keys


def test_all_set_the_same_keys():
    assert len({frozenset(keys) for keys in AUGMENTATIONS.values()}) == 1


def test_a_key_that_is_given_wins():
    loaded = data(augmentation="mmseg", flip=False, scale=[0.8, 1.2])
    assert (loaded.flip, loaded.scale, loaded.cat_max_ratio) == (False, (0.8, 1.2), 0.75)


def test_an_override_replaces_the_whole_augmentation(tmp_path):
    first = load_config({"data": {"name": "synthetic", "augmentation": "mmseg"}, "student": STUDENT})
    (tmp_path / "config.yaml").write_text(dump_config(first))
    again = load_config(tmp_path)
    assert again.data.photometric == "mmseg"
    other = load_config(tmp_path, ["data.augmentation=skd", "data.flip=false"]).data
    assert (other.scale, other.photometric, other.fit, other.flip) == ((0.7, 2.1), False, None, False)
    plain = load_config(tmp_path, ["data.augmentation=null"]).data
    assert plain.model_dump() == data().model_dump()
    source = {"data": {"name": "synthetic", "flip": False}}
    read_config(source, ["data.augmentation=skd"])
    assert source == {"data": {"name": "synthetic", "flip": False}}


def test_a_name_is_no_setting_of_its_own():
    named = load_config({"data": {"name": "synthetic", "augmentation": "cirkd"}, "student": STUDENT})
    written = {"scale_step": 0.1, "padding": "mirrored"}
    spelt = load_config({"data": {"name": "synthetic", **written}, "student": STUDENT})
    assert fixed_settings(named) == fixed_settings(spelt)


def test_photometric_true_is_fast():
    assert data(photometric=True).photometric == "fast"
    assert data(photometric=True) == data(photometric="fast")
    assert data().photometric is False


def test_fill_is_the_students_mean_unless_it_is_given():
    assert build_transform(data(), (0.1, 0.2, 0.3)).fill == (0.1, 0.2, 0.3)
    assert build_transform(data(fill=[0, 0, 0]), (0.1, 0.2, 0.3)).fill == (0, 0, 0)
    assert build_transform(data()).fill == (0.485, 0.456, 0.406)


def test_errors():
    with pytest.raises(ValueError, match="augmentation: there is none called 'mmsg'; did you mean mmseg"):
        augmentation("mmsg")
    with pytest.raises(ValueError, match="data: augmentation: there is none called 'cwdd'; did you mean cwd"):
        data(augmentation="cwdd")
    for keys in ({"cat_max_ratio": 1.5}, {"photometric": "slow"}, {"padding": "left"}, {"scale_step": 0}):
        (key,) = keys
        with pytest.raises(ValueError, match=f"data.{key}"):
            data(**keys)
