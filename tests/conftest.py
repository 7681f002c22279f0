"""What many tests share: fixtures, and a machine that looks the same to every test, whatever it is."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from faults import at_step, config, interrupt
from segdistill import distill

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE = 600
"""Seconds after which something that has to end is taken to hang; no measure of speed."""

# No test knows how fast the machine is, how many cores it has, whether it has bf16, or who reads the terminal.
CI = os.environ.get("CI", "").lower() == "true"
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=CI, database=None
)
settings.load_profile("untimed")
torch.set_num_threads(1)  # before the fixtures of a whole session; `_seed` says it again to every test
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False  # precision: auto is fp32
for _name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
    os.environ.pop(_name, None)  # they make rich colour or fold what a command prints
os.environ["COLUMNS"] = "80"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other, all the more on a busy machine


def lacking(tool: str, remedy: str) -> NoReturn:
    """Skip a test for want of a tool; in CI, where every tool has to be there, fail instead.

    `.ci/run` names in `SEGDISTILL_MAY_LACK` what it could not install.

    This is the only way to skip: a test that quietly does not run protects nothing.

    Args:
        tool: that is not here.
        remedy: how one gets it.
    """
    reason = f"needs {tool}: {remedy}"
    allowed = os.environ.get("SEGDISTILL_MAY_LACK", "").split()
    if os.environ.get("CI", "").lower() == "true" and tool not in allowed:
        pytest.fail(f"{reason} (CI=true makes this skip a failure)", pytrace=False)
    pytest.skip(reason)


def needs_package(name: str, extra: str) -> None:
    """Skip a test if a package of an extra is not installed.

    Args:
        name: of the module that is imported.
        extra: of this project that brings it.
    """
    try:
        __import__(name)
    except ImportError:
        lacking(name, f"pip install 'segdistill[{extra}]'")


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or lacking("Chromium", "apt-get install chromium")


@pytest.fixture
def segdistill(monkeypatch, capsys):
    """Run the command line in this process: arguments → exit code, standard output, standard error."""

    def run(*arguments):
        from segdistill import cli, show
        from segdistill.commands import terminal

        monkeypatch.setattr(terminal, "console", show.PlainConsole())  # as wide as COLUMNS says now
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
    """The root of the real CamVid data set."""
    return camvid_root()


def camvid_root() -> Path:
    """Find CamVid.

    The one skip that CI allows: nobody may hand the images on, so a public machine does not have them. A place that is
    named but holds no CamVid is a mistake everywhere.
    """
    named = os.environ.get("SEGDISTILL_CAMVID")
    places = [Path(named)] if named else [root / "shared/data/camvid" for root in (REPOSITORY.parent, REPOSITORY)]
    for place in places:
        if (place / "train").is_dir():
            return place
    if named:
        pytest.fail(f"SEGDISTILL_CAMVID={named} has no folder train/; it has to be SegNet's folder", pytrace=False)
    pytest.skip("CamVid is not here; set SEGDISTILL_CAMVID to SegNet's folder (train/ trainannot/ …)")


@pytest.fixture(scope="session")
def released() -> Path:
    """ESPNet's released CamVid file; as the images, it is not ours to hand on, so that CI may lack it."""
    name = "espnet_p_2_q_8_camvid.pth"
    for folder in (os.environ.get("SEGDISTILL_RELEASED"), REPOSITORY.parent / "shared/released"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    pytest.skip(f"{name} is not here; set SEGDISTILL_RELEASED to a folder with that file of github.com/sacmehta/ESPNet")


@pytest.fixture(scope="session")
def standard() -> Path:
    """Miniature files of the standard data sets and worked numbers of their protocols: `samples/`, `protocol_cases/`.

    Most are not ours to hand on either.
    """
    for folder in (os.environ.get("SEGDISTILL_STANDARD"), REPOSITORY.parent / "shared/datasets"):
        if folder and (Path(folder) / "protocol_cases").is_dir():
            return Path(folder)
    pytest.skip("the standard data sets' samples are not here; set SEGDISTILL_STANDARD to their folder")


@pytest.fixture(autouse=True)
def _required(request: pytest.FixtureRequest) -> None:
    """Look at the marks `requires(there, tool)` of a test: what a system has to have."""
    for mark in request.node.iter_markers("requires"):
        there, tool = mark.args
        if not there:
            lacking(tool, "run the tests where it is")


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


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait for something, however slow the machine is; fail if it hangs.

    Args:
        happened: whether it has.
        process: that is to do it; fail at once if it ends before.
    """
    until = time.monotonic() + PATIENCE
    while not happened():
        assert process is None or process.poll() is None, f"the process ended with exit code {process.returncode}"
        assert time.monotonic() < until, f"nothing for {PATIENCE} s"
        time.sleep(0.1)


def write_image(path: Path, values: object) -> None:
    """Write an image of 8 bits from numbers, with the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


class Malicious:
    """Runs a function when it is unpickled."""

    def __reduce__(self):
        return (print, ("this must never run",))
