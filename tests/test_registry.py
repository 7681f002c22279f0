"""Folders of entries: a file dropped in is an entry, and nothing is listed anywhere else."""

import pytest

from segdistill._registry import Registry
from segdistill.data.sets import SETS
from segdistill.methods import METHODS
from segdistill.models import list_models, split_name
from segdistill.models.external import LIBRARIES, external_keywords, external_options
from segdistill.models.families import FAMILIES, named_family

METHOD = """
from torch import nn
from segdistill.methods import Method

class Helper(nn.Module):
    def __init__(self, *, width: int = 3): super().__init__()

class Mine(Method):
    def __init__(self, *, weight: float = 2.0): super().__init__()
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A registry on a folder of its own."""
    package = tmp_path / "shop_of_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_tool.py").write_text("raise RuntimeError")
    (package / "mine.py").write_text(METHOD)
    (package / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("shop_of_methods", "segdistill.methods._base:Method", "method")


def test_a_file_is_an_entry(shop):
    assert shop.names() == ["empty", "mine"]
    assert shop.load("mine").__name__ == "Mine"
    assert shop.keywords("mine") == {"weight"}
    assert shop.resolve("mine", {}) == {"weight": 2.0}
    assert shop.resolve("mine", {"weight": 3}) == {"weight": 3.0}


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("mime", {}, "no method 'mime'; did you mean mine?"),
        ("empty", {}, r"shop_of_methods/empty.py must define exactly one Method, found \[\]"),
        ("mine", {"wieght": 1}, "method mine has no option 'wieght'; did you mean weight?"),
        ("mine", {"weight": "much"}, "method mine, weight: .*, got 'much'"),
    ],
)
def test_mistakes(shop, name, options, line):
    with pytest.raises(ValueError, match=line) as caught:
        shop.resolve(name, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("registry", [SETS, METHODS, FAMILIES], ids=["data sets", "methods", "families"])
def test_option_names_read_from_a_file_are_those_of_the_class(registry):
    for name in registry.names():
        read = registry.keywords(name)
        if read is not None:
            assert read == set(registry.options(name).model_fields), name


def test_the_text_of_nearly_every_entry_tells_its_options():
    entries = [(registry, name) for registry in (SETS, METHODS, FAMILIES) for name in registry.names()]
    silent = [name for registry, name in entries if registry.keywords(name) is None]
    assert set(silent) <= {"none"}  # it has no options


def test_option_names_of_other_libraries():
    for library in LIBRARIES:
        known = external_keywords(f"{library}:x")
        if library == "python":
            assert known is None
        else:
            assert known == set(external_options(f"{library}:x").model_fields)


def test_names_tell_their_family_without_importing_it():
    for name in list_models():
        assert named_family(name) == split_name(name)[0]
