"""What a comparison does itself beside its runs: as often as there are runs, or once."""

import json

import pytest

from conftest import write_image
from segdistill.comparison import grid
from segdistill.comparison.executors.task import Outcome
from segdistill.data import walk
from test_compare import ALONE


class Instant:
    """An executor whose runs end at once and leave nothing."""

    prints, threads = False, None

    def __init__(self, jobs=1):
        self.jobs = jobs

    def run(self, tasks):
        for position, _ in enumerate(tasks):
            yield position, Outcome(0.5)


@pytest.mark.parametrize("seeds", [1, 4])
def test_what_is_known_beside_the_runs_is_written_as_often_however_many_they_are(tmp_path, monkeypatch, seeds):
    written, write = [], grid.write_json
    monkeypatch.setattr(grid, "write_json", lambda path, value: (written.append(path.name), write(path, value)))
    grid.compare(ALONE, ["methods=[none]", f"seeds={seeds}"], out=tmp_path, executor=Instant(3), say=lambda line: None)
    assert written == ["plan.json", "plan.json", "compare.json"]
    assert list(json.loads((tmp_path / "plan.json").read_text())["jobs"].values()) == [3] * seeds


def test_how_many_at_a_time_is_known_of_a_command_that_was_stopped(tmp_path):
    def stop(_run):
        raise KeyboardInterrupt

    class Stopped(Instant):
        def run(self, tasks):
            return map(stop, tasks)

    with pytest.raises(ValueError, match="stopped"):
        grid.compare(ALONE, ["methods=[none]"], out=tmp_path, executor=Stopped(2), say=lambda line: None)
    assert set(json.loads((tmp_path / "plan.json").read_text())["jobs"].values()) == {2}


@pytest.mark.parametrize("shares", ["[1.0]", "[0.25, 0.5, 1.0]"])
def test_a_data_set_is_searched_once_for_all_shares_of_labels(tmp_path, monkeypatch, shares):
    for kind, values in (("images", [[[0, 0, 0]] * 32] * 32), ("masks", [[0, 1] * 16] * 32)):
        for split in ("train", "val", "test"):
            for number in range(4):
                write_image(tmp_path / f"data/{kind}/{split}/{number}.png", values)
    searched, search = [], walk._walk

    def counted(folder, *how):
        yield from search(folder, *how)
        searched.append(folder)  # to its end, not up to the first file

    monkeypatch.setattr(walk, "_walk", counted)
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["a", "b"], "crop": [32, 32], "batch_size": 4}
    source = {**ALONE, "data": data, "methods": ["none"], "seeds": 1}
    grid.compare(source, [f"labelled={shares}"], out=tmp_path / "out", executor=Instant(), say=lambda line: None)
    assert len(searched) == len(set(searched)) > 0
