"""Many requests of several clients at once to a served student: latencies, and the growth of the server's memory.

    python benchmarks/serve.py [--requests N] [--clients N] [--size H W]

writes `results/serve.json`, if it is the whole run. The server is a process of its own, `segdistill serve` with an
untrained student; all traffic goes to 127.0.0.1. A client sends its next request when it has the answer to the one
before. Only one image is worked on at a time, so that a latency is mostly waiting: the time of one, times the clients.
"""

import argparse
import http.client
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from _measure import RESULTS, machine
from segdistill import build_model, make_card, save_student

NETWORK = "pspnet_resnet18_quarter"
WARM = 40
"""Requests before memory is looked at first: each size of image leaves buffers with the allocator."""


def picture(height: int, width: int) -> bytes:
    """A JPEG of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def ask(port: int, body: bytes) -> tuple[int, float]:
    """One request: status, and seconds."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/predict?format=png", body)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer.status, time.perf_counter() - start


def resident_mib(process: int) -> float:
    """What a process holds in memory (Linux)."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024  # type: ignore[index]


def soak(requests: int, clients: int, size: tuple[int, int]) -> dict[str, Any]:
    """Serve a student, send requests, and say how long they took and what the server has grown by.

    Args:
        requests: in all.
        clients: at a time.
        size: (H,W) of the images.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = build_model(NETWORK, num_classes=3)
        file = Path(folder) / "student.safetensors"
        save_student(file, network, make_card(network, ["a", "b", "c"], [(0, 0, 0), (255, 0, 0), (0, 0, 255)]))
        command = [sys.executable, "-m", "segdistill", "serve", str(file), "--port", "0", "--device", "cpu"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1])
            body = picture(*size)
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda _: ask(port, body), range(WARM)))
                alone = float(np.median([ask(port, body)[1] for _ in range(10)]))
                before = resident_mib(server.pid)
                start = time.perf_counter()
                found = list(pool.map(lambda _: ask(port, body), range(requests)))
                seconds = time.perf_counter() - start
            after = resident_mib(server.pid)
        finally:
            server.terminate()
            server.wait()
    times = 1000 * np.array([taken for _, taken in found])
    return {
        "requests": requests, "clients": clients, "size": list(size), "network": NETWORK,
        "statuses": dict(Counter(str(status) for status, _ in found)),
        "alone_ms": round(1000 * alone, 2), "p50_ms": round(float(np.percentile(times, 50)), 2),
        "p95_ms": round(float(np.percentile(times, 95)), 2), "max_ms": round(float(times.max()), 2),
        "per_second": round(requests / seconds, 2),
        "resident_mib": round(before, 1), "growth_mib": round(after - before, 2),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160))
    arguments = parser.parse_args()
    found = soak(arguments.requests, arguments.clients, tuple(arguments.size))
    print(json.dumps(found, indent=1))
    if (arguments.requests, arguments.clients, tuple(arguments.size)) != (500, 8, (120, 160)):
        return  # only the whole run is kept
    path = RESULTS / "serve.json"
    facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), **found}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    main()
