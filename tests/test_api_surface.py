"""The public names and their signatures stay put: a change shows up in `api_surface.json`, on purpose or not at all.

`python tests/test_api_surface.py` writes the file anew.
"""

import importlib
import inspect
import json
from pathlib import Path

SURFACE = Path(__file__).parent / "api_surface.json"
MODULES = (
    "segdistill",
    "segdistill.losses",
    "segdistill.texture",
    "segdistill.data",
    "segdistill.models",
    "segdistill.methods",
    "segdistill.metrics",
)
MOST = 22
"""Names at the top level that a newcomer can still read through."""


def surface():
    """Module → public name → its signature, or its kind."""
    return {name: describe(importlib.import_module(name)) for name in MODULES}


def describe(module):
    return {name: signature(getattr(module, name)) for name in sorted(module.__all__)}


def signature(thing):
    if not callable(thing):
        return type(thing).__name__
    text = str(inspect.signature(thing))
    if not inspect.isclass(thing):
        return text
    methods = [name for name, member in vars(thing).items() if inspect.isfunction(member) and not name.startswith("_")]
    return {"": text, **{name: str(inspect.signature(getattr(thing, name))) for name in sorted(methods)}}


def test_the_surface_is_the_committed_one():
    assert surface() == json.loads(SURFACE.read_text())


def test_the_top_level_is_short_and_complete():
    import segdistill

    assert len(segdistill.__all__) <= MOST
    needed = {
        "compare",
        "write_report",
        "build_dataset",
        "save_student",
        "make_card",
        "load_student",
        "distill",
        "predict",
    }
    assert needed <= set(segdistill.__all__)
    assert sorted(segdistill.__all__) == sorted(set(dir(segdistill)) & set(segdistill.__all__))


def test_no_example_imports_from_inside():
    root = Path(__file__).parent.parent
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        assert "segdistill.engine" not in page.read_text(), page


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=1) + "\n")
