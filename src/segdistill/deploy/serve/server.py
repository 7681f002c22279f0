"""The server: a socket, the models, an application, until somebody stops it."""

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from segdistill.engine.runtime import Runtime, pick_device

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

NEEDED = ("starlette", "uvicorn", "python_multipart")


def serve(
    student: str | Path,
    *,
    baseline: str | Path | None = None,
    teacher: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_bytes: int = 32 * 2**20,
    max_pixels: int = 40_000_000,
    waiting: int = 16,
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> None:
    """Serve a page and a JSON interface on trained networks, until it is interrupted.

    Nothing is written, and nothing leaves the machine. There is no password: whoever reaches the port may use it.

    Args:
        student: run folder or `student.safetensors`; its run's validation images are samples on the page.
        baseline: likewise, the same student without distillation.
        teacher: likewise.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        max_bytes: the largest upload.
        max_pixels: the largest image.
        waiting: requests that may wait, besides the one that is worked on.
        device: as for `pick_device`.
        say: prints a line: the address, when the server is ready.

    Raises:
        ValueError: if the extra `serve` is missing, the port is taken, or a model is not there.
    """
    try:
        for module in NEEDED:
            __import__(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"serve needs {error.name}; pip install 'segdistill[serve]'") from None
    from segdistill.deploy.serve.app import Limits, build_app
    from segdistill.deploy.serve.models import find_samples, load_served

    with bind(host, port) as listener:
        if not is_loopback(host):
            _warn(f"--host {host}: whoever reaches this machine may use the models; there is no password")
        run = Runtime(pick_device(device))
        paths = {"student": student, "baseline": baseline, "teacher": teacher}
        models = [load_served(role, path, run) for role, path in paths.items() if path is not None]
        app = build_app(models, find_samples(student, _warn), Limits(max_bytes, max_pixels, waiting), [host])
        listener.listen()
        with suppress(KeyboardInterrupt):  # that is how it ends
            named = ", ".join(f"{model.role} {model.name}" for model in models)
            say(f"serving {named} on {_address(listener)}")
            make_server(app).run([listener])


def make_server(app: "ASGIApp") -> "uvicorn.Server":
    """A server that prints nothing but its own faults and, once it is told to stop, waits five seconds at most.

    Args:
        app: what it serves.
    """
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, log_level="error", access_log=False, http="h11", ws="none", lifespan="off",
        proxy_headers=False, server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    return uvicorn.Server(config)


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address, before anything costs time.

    Args:
        host: name or address.
        port: 0 for a free one.

    Raises:
        ValueError: if it cannot be had.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host {host}: no such address; 127.0.0.1 is this machine by itself") from None
    listener = socket.socket(family, kind, number)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use; name another with --port, or 0 for a free one") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} may not be used here; name one from 1024 on with --port") from None
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return listener


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # standard output has the address alone


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: name or address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
