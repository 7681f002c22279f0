"""The exporter in a process of its own: it may not come to an end, and can then be stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill._printing import one_line, tolerate_any_encoding

if TYPE_CHECKING:
    from segdistill.deploy.graph import Interface

MISTAKE = 3
"""Exit code of a child whose last line says what is wrong."""


def trace_in_child(
    model: Path, interface: "Interface", format: str, target: Path, timeout: float, *, allow_code: bool | None
) -> None:
    """Write a student as the source of a format, as `Format.trace` does, within a time limit.

    Args:
        model: run folder or `student.safetensors`.
        interface: what goes in and comes out.
        format: name of the format.
        target: the file to write.
        timeout: seconds after which the exporter is stopped.
        allow_code: as for `load_student`.

    Raises:
        ValueError: if the exporter fails, or takes longer.
    """
    request = {"model": str(model), "target": str(target), "format": format, "interface": asdict(interface)}
    environment = dict(os.environ)
    if allow_code is not None:
        environment["SEGDISTILL_ALLOW_CODE"] = str(int(allow_code))
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(_too_slow(model, interface, timeout)) from None
    if ended.returncode != 0:
        raise ValueError(_failed(model, ended.returncode, ended.stderr.decode("utf-8", "replace")))


def _too_slow(model: Path, interface: "Interface", timeout: float) -> str:
    advice = "--timeout SECONDS waits longer"
    if interface.dynamic:
        advice += ", and a fixed size (--size H W instead of --dynamic) is easier for it"
    return f"{model} was not exported within {timeout:g} s: the exporter did not come to an end; {advice}"


def _failed(model: Path, code: int, errors: str) -> str:
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    if code == MISTAKE:
        return last
    if code < 0:
        name = signal.Signals(-code).name
        return f"{model} cannot be exported: the exporter was ended by {name}, as where memory runs out"
    return one_line(f"{model} cannot be exported: {last}")


def main(request: Mapping[str, Any]) -> None:
    """Do what a parent process asks for.

    Args:
        request: `model`, `format`, `target` and the fields of the `interface`.
    """
    from segdistill.deploy.formats import FORMATS
    from segdistill.deploy.graph import Interface, deployed
    from segdistill.engine.student import load_student

    fields = request["interface"]
    interface = Interface(**{**fields, "size": tuple(fields["size"])})
    module = deployed(load_student(request["model"]), interface)
    FORMATS[request["format"]].trace(module, interface, interface.outputs, Path(request["target"]))


if __name__ == "__main__":
    tolerate_any_encoding()
    try:
        main(json.loads(sys.argv[1]))
    except ValueError as error:
        print(one_line(str(error)), file=sys.stderr)
        sys.exit(MISTAKE)
