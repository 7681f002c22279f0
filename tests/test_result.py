"""From finished runs to the figures of a comparison, and to what is said of them."""

import csv

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from comparisons import SOURCE, TEACHERS, finished, gathered
from segdistill.comparison.bootstrap import Resampling, resampled_interval
from segdistill.comparison.notes import notes, verdict
from segdistill.comparison.plan import load_plan
from segdistill.comparison.result import correct, counts_path
from segdistill.comparison.statistics import holm, paired_interval, seeds_needed, sign_flip_p
from segdistill.comparison.table import against_cells, cells, latex, markdown
from segdistill.show import compare as show_compare

METHODS = "methods=[none,kd,cwd,skd]"


def lift(run):
    """CWD is clearly better, SKD a little, KD by nothing; each seed has luck of its own."""
    luck = torch.randn(1, generator=torch.Generator().manual_seed(len(run.method) * 100 + run.seed)).item()
    return {"none": 0.0, "kd": 0.0, "skd": 0.02, "cwd": 0.1}[run.method] + 0.05 * (run.seed % 3) + 0.008 * luck


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "grid", METHODS, "seeds=4", "against=cwd", lift=lift)


@pytest.fixture(scope="module")
def result(plan):
    return gathered(plan)


def row_of(result, method):
    return next(row for row in result["rows"] if row["method"] == method)


def test_every_figure_of_a_difference(plan, result):
    mious = {(run["method"], run["seed"]): run["miou"] for run in result["runs"]}
    rows = {method: [mious[method, seed] for seed in range(4)] for method in ("none", "kd", "cwd", "skd")}
    others = ["kd", "cwd", "skd"]
    intervals = {method: paired_interval(rows[method], rows["none"]) for method in others}
    corrected = holm([intervals[method].p for method in others])
    for method, p in zip(others, corrected, strict=True):
        found = row_of(result, method)["difference"]
        differences = [a - b for a, b in zip(rows[method], rows["none"], strict=True)]
        deviation = torch.tensor(differences, dtype=torch.float64).std().item()
        assert found == {
            **intervals[method].as_dict(),
            "deviation": pytest.approx(deviation),
            "sign_flip_p": sign_flip_p(differences),
            "seeds_needed": seeds_needed(deviation),
            "holm": p,
        }
    counts = {run.folder: load_file(counts_path(run.folder, "test"))["counts"] for run in plan.runs}
    draws = Resampling(next(iter(counts.values())), resamples=2000)
    sides = [
        torch.stack([draws.mious(counts[run.folder]) for run in plan.runs if run.method == method])
        for method in ("skd", "none")
    ]
    expected = resampled_interval(*sides).as_dict()
    assert {key: row_of(result, "skd")["bootstrap"][key] for key in expected} == expected


def test_the_other_reference(result):
    assert result["against"] == "cwd"
    for method in ("none", "cwd"):  # the one is held against the other already
        assert row_of(result, method)["against"] == {"pairs": 0, "difference": None, "bootstrap": None}
    told = row_of(result, "skd")["against"]
    own, its = (row_of(result, method)["difference"]["difference"] for method in ("skd", "cwd"))
    assert told["difference"]["difference"] == pytest.approx(own - its)
    ps = [row_of(result, method)["against"]["difference"]["p"] for method in ("kd", "skd")]
    assert [row_of(result, method)["against"]["difference"]["holm"] for method in ("kd", "skd")] == holm(ps)


def test_corrections_are_of_all_rows_together():
    rows = [{"difference": {"p": p}, "bootstrap": None} for p in (0.01, 0.04, 0.03, 0.005)]
    rows[2:2] = [{"difference": None, "bootstrap": None}, {"difference": {"p": None}, "bootstrap": {"p": 0.5}}]
    correct(rows)
    told = [row["difference"] and row["difference"]["holm"] for row in rows]
    assert told == [pytest.approx(0.03), pytest.approx(0.06), None, None, pytest.approx(0.06), pytest.approx(0.02)]
    assert rows[3]["bootstrap"] == {"p": 0.5, "holm": 0.5}


@pytest.mark.parametrize(
    ("noise", "holm_p", "difference", "word"),
    [
        (None, None, 0.1, "one seed"),
        (True, 0.3, 0.1, "within noise"),
        (False, 0.06, 0.1, "not after Holm"),
        (False, 0.04, 0.1, "better"),
        (False, 0.04, -0.1, "worse"),
    ],
)
def test_verdicts(noise, holm_p, difference, word):
    assert verdict({"within_noise": noise, "holm": holm_p, "difference": difference}, 0.95) == word


def test_tables_name_both_references(result):
    header, rows = cells(result)
    assert header[:10] == [
        *("method", "test mIoU %", "difference", "over seeds 95 %", "over images 95 %", "p seeds", "p images"),
        *("verdict", "seeds for +1", "gap closed"),
    ]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[header.index("verdict")] for row in rows] == ["–", "baseline", "within noise", "better", rows[4][7]]
    header, rows = against_cells(result)
    assert [row[0] for row in rows] == ["kd", "skd"]
    assert {row[header.index("verdict")] for row in rows} == {"worse"}
    assert "\n\nAgainst cwd:\n\n| method | difference |" in markdown(result)
    assert latex(result).count(r"\begin{tabular}") == 2
    alone = {**result, "against": None}
    assert against_cells(alone) is None
    assert "Against" not in markdown(alone)
    assert latex(alone).count(r"\begin{tabular}") == 1


def test_the_terminal_shows_both(result):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_compare.comparison(console, result)
    text = console.export_text()
    for title in ("comparison", "how sure the differences from none are", "against cwd", "what it cost"):
        assert title in text
    assert max(map(len, text.splitlines())) <= 100


def test_csv_has_every_figure(plan, result):
    with (plan.out / "compare.csv").open() as file:
        table = {line["method"]: line for line in csv.DictReader(file)}
    for method in ("kd", "cwd", "skd"):
        row = row_of(result, method)
        assert float(table[method]["difference_p"]) == row["difference"]["p"]
        assert float(table[method]["difference_p_holm"]) == row["difference"]["holm"]
        assert float(table[method]["difference_sign_flip_p"]) == row["difference"]["sign_flip_p"]
        assert int(table[method]["difference_seeds_needed"]) == row["difference"]["seeds_needed"]
        assert float(table[method]["bootstrap_p_holm"]) == row["bootstrap"]["holm"]
        assert table[method]["labelled"] == ""
    assert float(table["skd"]["against_difference"]) == row_of(result, "skd")["against"]["difference"]["difference"]
    assert table["cwd"]["against_difference"] == ""
    assert "bootstrap_seeds_needed" not in table["kd"]
    assert None not in table["kd"]  # no cell without a column


def test_notes_say_how_many_seeds_it_takes(result):
    told = " ".join(notes(result))
    assert "After Holm's correction better than none: cwd" in told
    assert "After Holm's correction better than cwd: no method; worse: kd, skd." in told
    assert "Holm's correction for 3 comparisons with none" in told
    once = [dict(row) for row in result["rows"]]  # of one method a single pair of seeds is there
    once[-1]["difference"] = {**once[-1]["difference"], "p": None, "within_noise": None, "holm": None}
    lacking = " ".join(notes({**result, "rows": once}))
    assert "for 3 comparisons with none (2 over seeds)" in lacking
    assert "After Holm's correction better than none: cwd; worse: no method." in lacking  # the others have a verdict
    assert "with 4 seeds its p cannot be below 0.125" in told
    most = max(row["difference"]["seeds_needed"] for row in result["rows"] if row["difference"])
    assert most > 4
    assert f"which would take up to {most}" in told
    enough = {**result, "rows": [row for row in result["rows"] if row["method"] == "cwd"]}
    enough["rows"][0] = {**enough["rows"][0], "difference": {**enough["rows"][0]["difference"], "seeds_needed": 4}}
    assert "Too few seeds" not in " ".join(notes(enough))
    enough["rows"][0]["difference"]["seeds_needed"] = None
    assert "which would take up to more than 1000" in " ".join(notes(enough))
    assert cells(enough)[1][1][8] == "> 1000"
    enough["rows"][0]["pairs"] = 6
    assert "sign-flip" not in " ".join(notes(enough))


def test_notes_say_that_the_teacher_is_a_mean(plan):
    mean = {**TEACHERS["synthetic"], "network": "big (4 views) + small", "looks": 5}
    told = [line for line in notes(gathered(plan, {"synthetic": mean})) if "teacher" in line]
    assert told == [
        "The teacher is the mean of 5 networks or views: big (4 views) + small. Its figures are those of the mean."
    ]
    assert not [line for line in notes(gathered(plan)) if "teacher" in line]


def test_one_seed_has_no_verdict(tmp_path):
    single = gathered(finished(tmp_path / "one", METHODS, "seeds=1"))
    assert "After Holm" not in " ".join(notes(single))
    assert "One seed says nothing of the spread" in " ".join(notes(single))
    assert {row["difference"]["holm"] for row in single["rows"] if row["difference"]} == {None}
    assert all(row["bootstrap"]["holm"] is not None for row in single["rows"] if row["bootstrap"])
    assert [row[7] for row in cells(single)[1]][2:] == ["one seed"] * 3


def again(plan, *overrides):
    return gathered(load_plan(SOURCE, [METHODS, "seeds=4", *overrides], plan.out))


def test_sequences_are_drawn_where_they_are_told(plan, result, monkeypatch):
    names = [f"s{n // 3}_{n}" for n in range(12)]
    monkeypatch.setattr("segdistill.comparison.result.build_split", lambda data, split: type("D", (), {"names": names}))
    whole = again(plan, "data.groups=^([^_]+)_")
    assert whole["sequences"] == {"synthetic": 4}
    for mine, plain in zip(whole["rows"], result["rows"], strict=True):
        assert mine["difference"] == plain["difference"]
        if mine["bootstrap"]:
            assert mine["bootstrap"]["difference"] == pytest.approx(plain["bootstrap"]["difference"])
            assert mine["bootstrap"]["low"] != plain["bootstrap"]["low"]
    told = " ".join(notes(whole))
    assert "resamples of whole sequences" in told
    assert "Images of synthetic test are 4 sequences, drawn as wholes; that is fewer than 5" in told
    assert "no evidence" not in " ".join(notes({**whole, "sequences": {"synthetic": 5}}))
    assert "resamples of images" in " ".join(notes(result))
    names.pop()
    with pytest.raises(ValueError, match="was evaluated on 12 images, and test has 11 now; delete eval_"):
        again(plan, "data.groups=^([^_]+)_")
    names[:] = ["x"] * 12
    with pytest.raises(ValueError, match=r"data\.groups: .* is not in 'x'"):
        again(plan, "data.groups=^([^_]+)_")


def test_runs_on_other_images_are_not_compared(tmp_path):
    plan = finished(tmp_path / "grid", "methods=[none,kd]", "seeds=1")
    path = counts_path(plan.runs[1].folder, "test")
    save_file({"counts": load_file(path)["counts"][:5].clone()}, path)
    with pytest.raises(ValueError, match=r"seed0 was evaluated on other images \(5\) than the runs before it \(12\)"):
        gathered(plan)


def test_each_run_is_resampled_once(plan, monkeypatch):
    seen = []
    mious = Resampling.mious
    monkeypatch.setattr(Resampling, "mious", lambda self, *given: seen.append(0) or mious(self, *given))
    again(plan, "against=cwd")
    assert len(seen) == 16  # whatever they are held against
