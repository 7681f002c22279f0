"""Fixtures that many tests share: golden numbers, real images, small taps."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from faults import at_step, config, interrupt
from segdistill import distill

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).parent.parent

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other, all the more on a busy machine


@pytest.fixture
def segdistill(monkeypatch, capsys):
    """Run the command line in this process: arguments → exit code, standard output, standard error."""

    def run(*arguments):
        from segdistill import cli

        monkeypatch.setattr(sys, "argv", ["segdistill", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Inputs, losses and gradients (float64) that were computed with the papers' released code."""
    return load_file(GOLDEN / "losses.safetensors")


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The root of the real CamVid data set, or a skip that says how to get one."""
    candidates = [os.environ.get("SEGDISTILL_CAMVID"), REPOSITORY.parent / "shared/data/camvid"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "train").is_dir():
            return Path(candidate)
    pytest.skip("CamVid is not here; set SEGDISTILL_CAMVID to SegNet's folder (train/ trainannot/ …)")


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run of four steps that nothing interrupted; only to be read."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    distill(config(), out=folder)
    return folder


@pytest.fixture(scope="session")
def _stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with at_step(pytest.MonkeyPatch(), 3, interrupt), pytest.raises(KeyboardInterrupt):
        distill(config(), out=folder)
    return folder


@pytest.fixture
def run(_stopped, tmp_path) -> Path:
    """A copy of the same run, interrupted in its third step."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


def check_golden(golden: dict[str, Tensor], key: str, loss: Tensor, student: Tensor) -> None:
    """Hold a loss and its gradient with respect to `student` against the golden numbers."""
    torch.testing.assert_close(loss, golden[f"{key}.loss"][0], rtol=1e-5, atol=0)
    if f"{key}.grad" in golden:
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, golden[f"{key}.grad"], rtol=1e-4, atol=1e-12)
