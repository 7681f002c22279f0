"""The notebooks run as they are, carry no output, and install nothing where segdistill is."""

import json
from pathlib import Path

import pytest

from conftest import REPOSITORY, needs_package

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_both_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["distil", "read_a_comparison"]
    assert len(cells(NOTEBOOKS[0])) == 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_is_missing(path):
    first = "".join(cells(path)[0]["source"])
    assert 'find_spec("segdistill") is None' in first
    assert '    %pip install -q "segdistill[report,export]"' in first


@pytest.mark.parametrize(
    "path", [NOTEBOOKS[0], pytest.param(NOTEBOOKS[1], marks=pytest.mark.slow)], ids=lambda path: path.stem
)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the kernel's; more would fight with the tests that run beside it
    needs_package("nbclient", "dev")
    needs_package("ipykernel", "dev")
    needs_package("matplotlib", "report")
    needs_package("onnxruntime", "export")
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [output["output_type"] for cell in book.cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert "display_data" in kinds
    assert not any("UsageError" in str(cell.get("outputs")) for cell in book.cells)
