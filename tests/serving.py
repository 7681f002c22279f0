"""What tests of the server share: one that runs in a thread, and requests that are as raw as they have to be."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from conftest import PATIENCE, wait_until
from segdistill.deploy.serve.app import Limits, build_app
from segdistill.deploy.serve.models import Samples, Served
from segdistill.deploy.serve.server import bind, make_server

COLOURS = [(200, 30, 30), (30, 160, 60), (40, 70, 220)]


class Halves:
    """A model whose ids are known: the left half of every image is one class, the right half another.

    Args:
        left: id there.
        right: likewise.
    """

    def __init__(self, left=0, right=1):
        self.left, self.right = left, right
        self.seen = []

    def __call__(self, pixels):
        self.seen.append(pixels.copy())
        ids = np.full(pixels.shape[:2], self.left, np.uint8)
        ids[:, pixels.shape[1] // 2 :] = self.right
        return ids


def served(segment=None, role="student", classes=("sky", "road", "car"), **changes):
    facts = {"name": role, "palette": COLOURS, "size": None, "image_range": None, "params": 12_345, **changes}
    return Served(role=role, classes=list(classes), segment=segment or Halves(), **facts)


class Painted:
    """A data set of random images, whose truth is the class 0 above, 1 below, and nothing in a corner."""

    classes, palette, names = ["sky", "road"], COLOURS[:2], ["first", "<b>second</b>"]

    def __getitem__(self, index):
        import torch

        image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        mask = torch.zeros(40, 60, dtype=torch.uint8)
        mask[20:] = 1
        mask[:4, :6] = 255
        return image, mask


def samples():
    return Samples(Painted())


@contextmanager
def serving(*models, samples=None, names=(), **limits) -> Iterator[int]:
    """Serve models on a free port of 127.0.0.1, which is given."""
    listener = bind("127.0.0.1", 0)
    server = make_server(build_app(models or [served()], samples, Limits(**limits), names))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def ask(port, path, method="GET", body=None, **headers):
    """One request: status, headers, body; JSON is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    kind = answer.headers["content-type"] or ""
    return answer.status, answer.headers, json.loads(content) if kind == "application/json" else content


def unpacked(answer):
    """The class numbers (H,W) of an answer of `?format=rle`."""
    ids, lengths = answer["runs"][::2], answer["runs"][1::2]
    return np.repeat(ids, lengths).reshape(answer["height"], answer["width"])


def image_file(pixels, form="PNG", mode=None, **options):
    """Pixels as what an image file holds."""
    image = Image.fromarray(np.asarray(pixels))
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


def noise(height=30, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def form_of(*parts, boundary="limit"):
    """A multipart body, and its content type; a part is (name, file name or None, bytes)."""
    lines = b""
    for name, file, content in parts:
        more = "" if file is None else f'; filename="{file}"'
        lines += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return lines + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
