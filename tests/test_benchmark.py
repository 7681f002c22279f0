import json
import sys
from functools import partial

import pytest
import torch
from torch import nn

from conftest import needs_package
from segdistill.engine.student import make_card, save_student
from segdistill.measure import benchmark as module
from segdistill.measure.benchmark import benchmark, peak_bytes
from segdistill.measure.method_costs import method_costs, shapes
from segdistill.models import build_model
from segdistill.texture import contourlet_operations

STUDENT, TEACHER = "pspnet_resnet18_quarter", "pspnet_resnet18_half"


@pytest.fixture(scope="module")
def networks():
    return {name: build_model(name, num_classes=5) for name in (STUDENT, TEACHER)}


@pytest.fixture
def segdistill(segdistill):
    return partial(segdistill, "benchmark")


def test_a_convolution_is_counted_timed_and_weighed():
    network = nn.Conv2d(3, 8, 3, padding=1)
    result = benchmark({"conv": network}, sizes=[(32, 64), (64, 64)], repeats=3, device="cpu", threads=1)
    assert [row["size"] for row in result["rows"]] == [[32, 64], [64, 64]]
    for row in result["rows"]:
        height, width = row["size"]
        assert row["params"] == 3 * 8 * 9 + 8
        assert row["flops"] == 2 * 27 * 8 * height * width
        assert row["peak_mib"] * 2**20 >= 4 * 8 * height * width
        assert 0 < row["ms"] <= row["ms_p95"]
    assert result["environment"]["threads"] == 1


def test_peak_memory_counts_what_is_held_at_once():
    def work():
        for _ in range(3):
            torch.ones(2**18).add(1)  # two tensors of 1 MiB at a time

    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(2 * 2**20, rel=0.01)


def test_without_repeats_nothing_runs(networks, monkeypatch):
    monkeypatch.setattr(module, "milliseconds", None)
    rows = benchmark(networks, sizes=[(512, 1024)], repeats=0, device="cpu")["rows"]
    assert [row["network"] for row in rows] == [STUDENT, TEACHER]
    assert rows[0]["flops"] < rows[1]["flops"]
    assert "ms" not in rows[0]


def test_compiled_networks_stand_beside_the_eager_ones(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    network = nn.Conv2d(3, 4, 1)
    rows = benchmark({"conv": network}, sizes=[(32, 32)], repeats=2, device="cpu", compiled=True)["rows"]
    assert [row["mode"] for row in rows] == ["eager", "compiled"]
    assert compiled == [network]
    assert all(row["ms"] > 0 for row in rows)


def test_onnx_runtime_computes_the_same_with_as_many_threads(networks):
    needs_package("onnxruntime", "export")
    image = torch.rand(1, 3, 32, 64)
    network = networks[STUDENT].eval()
    session = module.ExportedWork(STUDENT, network, image)
    with torch.no_grad():
        session(image)
        (logits,) = map(torch.from_numpy, session.binding.copy_outputs_to_cpu())
        torch.testing.assert_close(logits, network(image), atol=1e-4, rtol=1e-4)
    assert session.session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    rows = benchmark({STUDENT: network}, sizes=[(32, 64)], repeats=2, device="cpu", threads=1, onnx=True)["rows"]
    assert [row["mode"] for row in rows] == ["eager", "onnxruntime"]
    assert rows[0]["params"] == rows[1]["params"]
    assert rows[1]["ms"] > 0
    assert rows[0]["peak_mib"] > 0
    assert rows[1]["peak_mib"] is None


def test_what_onnx_runtime_cannot_do_is_one_line(segdistill, monkeypatch):
    class Undecided(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x  # depends on the values: no graph

    with pytest.raises(ValueError, match="undecided cannot run in ONNX Runtime") as caught:
        module.ExportedWork("undecided", Undecided(), torch.rand(1, 3, 32, 32))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="does not run on meta"):
        module.ExportedWork("undecided", Undecided(), torch.rand(1, 3, 32, 32, device="meta"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = segdistill(STUDENT, "--size", 32, 32, "--repeats", 1, "--onnx")
    assert status == 2
    assert "pip install 'segdistill[export]'" in err


def test_threads_are_set_for_the_measurement_only():
    seen = []

    class Looks(nn.Conv2d):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    benchmark({"conv": Looks(3, 3, 1)}, sizes=[(32, 32)], repeats=1, device="cpu", threads=before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_parts_of_sstkd_are_those_of_its_code(networks):
    student, teacher = networks.values()
    rows = {row["part"]: row for row in method_costs("sstkd", student, teacher, (64, 128))}
    own, other = 16 + 32, 32 + 64  # channels of both stages
    positions = 8 * 16
    assert rows["projection"]["trained"] == own * other
    assert rows["projection"]["flops"] == 2 * own * other * positions
    dense = 2 * other * contourlet_operations(8, 16, dense=True)
    assert rows["CDM: contourlet, as it runs"]["flops"] == dense
    assert rows["CDM: contourlet, filter taps alone"]["flops"] == 2 * other * contourlet_operations(8, 16)
    dtiem = rows["DTIEM: similarities, counts"]
    assert (dtiem["trained"], dtiem["fixed"]) == (0, 0)
    assert dtiem["flops"] > 0
    assert rows["DTIEM: crops of the regions"]["flops"] == 2 * 4 * (own + other) * 64 * 256
    assert rows["critic, one map"]["trained"] > 3e6


@pytest.mark.parametrize(("method", "trained"), [("kd", 0), ("mimic", True), ("skd", 0), ("ifvd", 0)])
def test_costs_of_other_methods(networks, method, trained):
    student, teacher = networks.values()
    row, *critic = method_costs(method, student, teacher, (64, 64))
    features = (shapes(network, (64, 64), {"features"})["features"].shape[1] for network in (student, teacher))
    a, b = features
    assert row["trained"] == (a * b if trained else 0)
    assert bool(critic) == (method == "skd")
    assert (row["flops"] == 0) == (method == "kd")  # elementwise work alone
    assert not any(p.is_meta for p in student.parameters())


def test_the_command_prints_and_writes(tmp_path, segdistill, networks, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    network = networks[STUDENT]
    card = make_card(network, list("abcde"), [(i, i, i) for i in range(5)])
    save_student(tmp_path / "student.safetensors", network, card)
    status, out, err = segdistill(
        *(tmp_path, "--teacher", TEACHER, "--method", "sstkd", "--size", 32, 64, "--repeats", 1, "--device", "cpu"),
        *("--json", tmp_path / "cost.json"),
    )
    assert status == 0, err
    assert all(word in out for word in (TEACHER, "ms p95", "GFLOPs", "CDM: contourlet", "filter taps", "analytical"))
    written = json.loads((tmp_path / "cost.json").read_text())
    assert [row["params"] for row in written["rows"]] == [
        sum(p.numel() for p in network.parameters()),
        sum(p.numel() for p in build_model(TEACHER, num_classes=19).parameters()),
    ]
    assert written["method"] == "sstkd"
    assert written["costs_size"] == [32, 64]
    status, out, _ = segdistill(STUDENT, "--repeats", 0)
    assert (status, "–" in out) == (0, True)


def test_the_papers_pair_stands_in_for_what_is_left_out(segdistill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = segdistill("--method", "sstkd", "--repeats", 0, "--size", 32, 64)
    assert status == 0
    assert all(word in out for word in ("pspnet_resnet101", "pspnet_resnet18", "CDM: contourlet"))


def test_mistakes_are_one_line(segdistill):
    for arguments, message in (
        (("pspent_resnet18",), "did you mean pspnet_resnet18"),
        ((STUDENT, "--teacher", STUDENT), "leave out the teacher"),
        ((STUDENT, "--teacher", TEACHER, "--method", "sstk"), "did you mean sstkd"),
        ((STUDENT, "--teacher", TEACHER, "--method", "none"), "reads nothing of a teacher"),
        ((STUDENT, "--size", 8, 8), "at least 32×32"),
        ((STUDENT, "--repeats", -1), "repeats of at least 0"),
        ((STUDENT, "--threads", 0), "threads of at least 1"),
        ((STUDENT, "--device", "tpu:9"), "not available"),
    ):
        status, _, err = segdistill(*arguments)
        assert status == 2, arguments
        assert message in err
        assert err.count("\n") == 1


def test_a_compiler_that_fails_is_one_line(segdistill, monkeypatch):
    class BrokenError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(_image):
        raise BrokenError("no C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda _network: fail)
    status, _, err = segdistill(STUDENT, "--size", 32, 32, "--repeats", 1, "--compile")
    assert status == 2
    assert "no C++ compiler found; leave out --compile" in err
    assert err.count("\n") == 1


def test_help_has_an_example(segdistill):
    status, out, _ = segdistill("--help")
    assert status == 0
    assert "segdistill benchmark pspnet_resnet18" in out
