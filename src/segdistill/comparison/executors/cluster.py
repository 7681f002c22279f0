"""The way to a Ray cluster."""

import os
import socket
import warnings
from importlib import import_module
from typing import Any

from segdistill._printing import first_line, one_line

ANSWER = 10.0
"""Seconds to wait for an address to answer."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = b"\x04"
"""What begins a talk in HTTP/2, as Ray has it, and the kind of frame with which it is answered (RFC 9113, 3.4)."""


def connect(address: str | None) -> Any:
    """Connect to a cluster.

    Args:
        address: as for `Ray`.

    Returns:
        The module of Ray.

    Raises:
        ImportError: if it is not installed.
        ValueError: with one line, if there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what is looked after here
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise ImportError("--executor ray needs Ray; pip install 'segdistill[ray]'") from None
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        _check_answers(address)
    # Nothing is uploaded: the machines see the package where it is installed, or where the driver's PYTHONPATH says.
    paths = os.environ.get("PYTHONPATH")
    variables = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))} if paths else {}
    how: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "log_to_driver": False, "logging_level": "ERROR"}
    if address in (None, "local"):
        how["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray's client warns of is in its error, too
            ray.init(address, **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from None
    return ray


def _check_answers(address: str | None) -> None:
    """Refuse an address at which nobody or something else answers; Ray itself would try for a quarter of an hour."""
    place = str(address).removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--address: expected HOST:PORT, ray://HOST:PORT, auto or local, got {address}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as connection:
            connection.sendall(HELLO)
            is_ray = os.environ.get("RAY_USE_TLS", "0") != "0" or connection.recv(9)[3:4] == SETTINGS
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address}: {one_line(str(error))}; start one with `ray start`") from None
    if not is_ray:
        raise ValueError(
            f"no Ray cluster at {address}: something else answers there; `ray start` says the port, as a rule 6379, "
            "after ray:// 10001"
        )
