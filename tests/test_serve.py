"""The server: what it answers, what it refuses, and that nobody gets more out of it than was meant."""

import asyncio
import gzip
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PATIENCE, REPOSITORY, wait_until
from patches import CLASSES, write_onnx
from segdistill import build_model, load_student, make_card, save_student
from segdistill.data.files import read_image
from segdistill.deploy.predict import predict
from segdistill.deploy.serve import intake
from segdistill.deploy.serve.answers import runs
from segdistill.deploy.serve.app import PAGE
from segdistill.deploy.serve.guard import HEADERS, Guard
from segdistill.deploy.serve.models import find_samples, load_served
from segdistill.deploy.serve.server import NEEDED, bind, is_loopback
from segdistill.engine.runtime import Runtime
from segdistill.runtime import Predictor
from serving import COLOURS, Halves, Painted, ask, form_of, image_file, noise, samples, served, serving, unpacked

PNG = image_file(noise())


@pytest.fixture(scope="module")
def port():
    models = [served(Halves(0, 1)), served(Halves(2, 0), "teacher", ["road", "<i>bus</i>", "sky"])]
    with serving(*models, samples=samples()) as port:
        yield port


def post(port, path, body=PNG, **headers):
    return ask(port, path, "POST", body, **headers)


def halves(height, width, left=0, right=1):
    return Halves(left, right)(np.zeros((height, width, 3), np.uint8))


# What it gives


def test_the_three_forms_say_the_same(port):
    status, headers, png = post(port, "/predict")
    image = Image.open(io.BytesIO(png))
    assert (status, headers["content-type"], image.mode) == (200, "image/png", "P")
    assert np.array_equal(np.asarray(image), halves(30, 50))
    assert image.getpalette()[:9] == [part for colour in COLOURS for part in colour]
    assert re.fullmatch(r"read;dur=[\d.]+, segment;dur=[\d.]+", headers["server-timing"])
    _, _, told = post(port, "/predict?format=rle&model=student")
    assert np.array_equal(unpacked(told), halves(30, 50))
    _, _, brief = post(port, "/predict?format=json")
    assert {key: told[key] for key in brief if key != "ms"} == {key: brief[key] for key in brief if key != "ms"}
    assert brief["shares"] == {"sky": 0.5, "road": 0.5, "car": 0.0}
    assert "runs" not in brief


def test_a_model_is_chosen_by_its_role(port):
    _, _, told = post(port, "/predict?format=rle&model=teacher")
    assert np.array_equal(unpacked(told), halves(30, 50, 2, 0))
    assert told["classes"] == ["road", "<i>bus</i>", "sky"]
    assert told["model"] == "teacher"


@pytest.mark.parametrize("ids", [[[0]], [[3, 3, 0], [0, 0, 0]], [[1], [2], [1]], [[255, 255], [255, 255]]])
def test_runs_are_exact(ids):
    ids = np.array(ids, np.uint8)
    found = runs(ids)
    assert np.array_equal(np.repeat(found[::2], found[1::2]).reshape(ids.shape), ids)
    assert all(one != other for one, other in zip(found[::2], found[2::2], strict=False))


def test_a_form_is_taken_like_a_body(port):
    body, kind = form_of(("note", None, b"hello"), ("image", "ä b.png", PNG))
    status, _, told = post(port, "/predict?format=rle", body, content_type=kind)
    assert status == 200
    assert np.array_equal(unpacked(told), halves(30, 50))


@pytest.mark.parametrize("kind", ["image/png", "application/x-www-form-urlencoded", "text/plain", ""])
def test_what_a_body_is_called_does_not_matter(port, kind):
    assert post(port, "/predict", PNG, content_type=kind)[0] == 200


EXIF = Image.Exif()
EXIF[0x0112] = 6
KINDS = {
    "grey.png": image_file(noise()[..., 0]),
    "deep.png": image_file(noise()[..., 0].astype(np.uint16) * 257),
    "rgba.png": image_file(noise(), mode="RGBA"),
    "palette.png": image_file(noise(), mode="P"),
    "bits.png": image_file(noise(), mode="1"),
    "turned.jpg": image_file(noise(), "JPEG", exif=EXIF),
    "cmyk.jpg": image_file(noise(), "JPEG", mode="CMYK"),
    "lossless.webp": image_file(noise(), "WEBP", lossless=True),
    "packed.tif": image_file(noise(), "TIFF", compression="tiff_lzw"),
    "plain.bmp": image_file(noise(), "BMP"),
    "grey.pgm": image_file(noise()[..., 0], "PPM"),
    "still.gif": image_file(noise(), "GIF", mode="P"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_as_from_a_file(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name])
    model = Halves()
    with serving(served(model)) as port:
        status, _, told = post(port, "/predict?format=json", KINDS[name])
        shown = post(port, "/image", KINDS[name])[2]
    expected = read_image(tmp_path / name)
    assert status == 200
    assert np.array_equal(model.seen[0], expected)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), expected)
    assert (told["height"], told["width"]) == ((50, 30) if name == "turned.jpg" else (30, 50))


def test_a_preview_is_scaled_down_only(port):
    status, headers, shown = post(port, "/image?side=25")
    assert (status, headers["x-image-size"]) == (200, "30 50")
    assert Image.open(io.BytesIO(shown)).size == (25, 15)
    assert Image.open(io.BytesIO(post(port, "/image?side=400")[2])).size == (50, 30)


def test_models_and_limits_are_listed(port):
    _, _, told = ask(port, "/models")
    assert [(model["role"], model["params"]) for model in told["models"]] == [("student", 12345), ("teacher", 12345)]
    assert told["limits"] == {"bytes": 32 * 2**20, "pixels": 40_000_000, "waiting": 16}


def test_samples_with_their_truth(port):
    assert ask(port, "/samples")[2]["names"] == ["first", "<b>second</b>"]
    pixels, truth = Painted()[1]
    shown = Image.open(io.BytesIO(ask(port, "/samples/1")[2]))
    assert np.array_equal(np.asarray(shown), pixels.permute(1, 2, 0).numpy())
    assert Image.open(io.BytesIO(ask(port, "/samples/1?side=30")[2])).size == (30, 20)
    _, _, told = ask(port, "/samples/1/truth?format=rle")
    assert np.array_equal(unpacked(told), truth.numpy())
    assert told["shares"] == {"sky": round(1176 / 2400, 6), "road": 0.5}  # the rest is ignored
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(ask(port, "/samples/1/truth")[2]))), truth.numpy())
    _, _, found = post(port, "/predict?sample=1&format=json", None)
    assert (found["height"], found["width"]) == (40, 60)


def test_a_sample_that_cannot_be_read_says_why(monkeypatch):
    def fail(self, index):
        raise ValueError("x.png: not a readable image (damaged); replace or remove it")

    monkeypatch.setattr(Painted, "__getitem__", fail)
    with serving(samples=samples()) as port:
        for answer in (ask(port, "/samples/0"), ask(port, "/samples/0/truth"), post(port, "/predict?sample=0", None)):
            assert (answer[0], answer[2]["error"][:6]) == (500, "x.png:")


def test_the_interface_describes_itself(port):
    _, _, told = ask(port, "/openapi.json")
    assert told["openapi"].startswith("3.")
    for path, verbs in told["paths"].items():
        for verb, operation in verbs.items():
            allowed = {"head", "options"} | {verb}
            other = "POST" if verb == "get" else "GET"
            address = path.replace("{number}", "0")
            status, headers, refused = ask(port, address, other, **({"content_length": "0"} if other == "POST" else {}))
            assert (status, refused) == (405, {"error": "this address takes another method"})
            assert {name.strip().lower() for name in headers["allow"].split(",")} <= allowed
            ok = ask(port, address, verb.upper(), PNG if verb == "post" else None)
            assert ok[0] == 200
            assert ok[1]["content-type"] in operation["responses"]["200"]["content"]
            given = {one["name"] for one in operation["parameters"] if one["in"] == "query"}
            for name in given:
                assert ask(port, f"{address}?{name}=zzz", verb.upper(), PNG if verb == "post" else None)[0] == 400
    _, _, answer = post(port, "/predict?format=rle")
    schema = told["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answer) == set(schema["properties"])


# What it refuses


REFUSED = {
    "empty": (b"", {}, 400, "the request has no image; send a file as its body, or as a form's field"),
    "text": (b"hello", {}, 415, "not an image of a kind that is read here: JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM"),
    "json": (b'{"image": 1}', {"content_type": "application/json"}, 415, "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", {}, 415, "not an image"),
    "cut.jpg": (image_file(noise(), "JPEG")[:-200], {}, 422, "image: not a readable image (image file is truncated"),
    "cut.png": (PNG[:-600], {}, 422, "image: not a readable image ("),
    "pages.tif": (
        image_file(noise(), "TIFF", save_all=True, append_images=[Image.fromarray(noise())]), {}, 422,
        "image: 2 images in one file; save each as a file of its own",
    ),
    "floats.tif": (image_file(noise()[..., 0].astype(np.float32), "TIFF"), {}, 422, "image: an image of floats"),
    "no boundary": (PNG, {"content_type": "multipart/form-data"}, 400, "the form cannot be read: "),
    "no form": (PNG, {"content_type": "multipart/form-data; boundary=x"}, 400, "the form cannot be read: "),
    "no file": (*form_of(("image", None, b"x")), 400, "the request has no image"),
    "two files": (*form_of(("a", "a.png", PNG), ("b", "b.png", PNG)), 400, "the form cannot be read: Too many files"),
    "packed": (gzip.compress(PNG), {"content_encoding": "gzip"}, 415, "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/predict", "/image"])
def test_bad_images_are_refused_in_one_line(port, name, path):
    body, headers, status, line = REFUSED[name]
    headers = {"content_type": headers} if isinstance(headers, str) else headers
    found, _, told = post(port, path, body, **headers)
    assert (found, list(told)) == (status, ["error"])
    assert told["error"].startswith(line)
    assert "\n" not in told["error"]


def test_too_many_bytes_are_refused_before_they_come():
    with serving(bytes=2000) as port:
        assert post(port, "/predict", PNG[:2001])[::2] == (
            413, {"error": "the request is larger than 2000 bytes; the server takes no more"}
        )  # fmt: skip
        for head in ("Content-Length: 999999999999", "Transfer-Encoding: chunked"):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
                raw.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
                if "chunked" in head:
                    raw.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"3e9\r\n" + b"x" * 1001 + b"\r\n")
                assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
        body, kind = form_of(("image", "x.png", b"x" * 3000))
        assert post(port, "/predict", body, content_type=kind)[0] == 413


def bomb(width, height):
    """A PNG of a few bytes whose header claims many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_by_the_header():
    with serving(pixels=1000) as port:
        status, _, told = post(port, "/predict", bomb(60_000, 60_000))
        assert (status, told["error"]) == (
            413, "the image has 60000×60000 = 3600000000 pixels, more than 1000, which is the server's --max-pixels"
        )  # fmt: skip
        assert post(port, "/predict", image_file(noise(25, 40)))[0] == 200
        assert post(port, "/predict", image_file(noise(25, 41)))[0] == 413


def test_damage_at_any_place_is_no_fault_of_the_server(port):
    random_ = random.Random(0)
    for name in ("turned.jpg", "palette.png", "packed.tif", "lossless.webp", "still.gif"):
        for _ in range(15):
            body = bytearray(KINDS[name])
            for _ in range(random_.randint(1, 6)):
                body[random_.randrange(len(body))] = random_.randrange(256)
            status, _, told = post(port, "/predict?format=json", bytes(body[: random_.randint(1, len(body))]))
            assert status in (200, 413, 415, 422), told


QUERIES = {
    "/predict?model=baseline": (400, "model=baseline: expected student or teacher"),
    "/predict?format=jpg": (400, "format=jpg: expected png or rle or json"),
    "/predict?modle=student": (400, "no parameter 'modle'; did you mean model?"),
    "/predict?format=png&format=rle": (400, "format is given twice"),
    "/predict?sample=2": (400, "sample=2: expected a number from 0 to 1"),
    "/predict?sample=-1": (400, "sample=-1: expected a number from 0 to 1"),
    "/predict?sample=%D9%A1": (400, "sample=١: expected a number from 0 to 1"),
    "/predict?sample=1": (400, "an image and a sample; the request needs one of them"),
    "/image?side=9": (400, "side=9: expected a number from 16 to 8192"),
    "/nothing": (404, "there is nothing at this address"),
}


@pytest.mark.parametrize("path", QUERIES)
def test_bad_addresses_are_refused_in_one_line(port, path):
    status, _, told = post(port, path)
    assert (status, told["error"]) == QUERIES[path]


@pytest.mark.parametrize("name", ["2", "x", "-1", "99999999999", "1e0", "../1", "%2e%2e"])
def test_samples_that_are_not_there(port, name):
    status, _, told = ask(port, f"/samples/{name}")
    assert status == 404
    assert told["error"].endswith("they are 0 to 1" if "/" not in name else "at this address")


def test_without_samples_there_are_none():
    with serving() as port:
        assert ask(port, "/samples")[2]["names"] == []
        assert ask(port, "/samples/0")[2] == {"error": "no sample 0; there are none"}
        assert post(port, "/predict?sample=0", None)[2] == {"error": "sample=0: expected nothing: there are none"}


@pytest.mark.parametrize("name", ["..%2fapp.py", "%2e%2e/app.py", "page.css/", "PAGE.CSS", "%00"])
def test_only_the_page_s_files_are_given(port, name):
    assert ask(port, f"/static/{name}")[0] == 404


def test_the_pages_files_are_all_ours(port):
    for file in PAGE.iterdir():
        status, headers, content = ask(port, f"/static/{file.name}")
        assert (status, content) == (200, file.read_bytes())
        assert headers["content-type"].partition(";")[0] in (
            "text/html",
            "text/css",
            "text/javascript",
            "image/svg+xml",
        )
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.search(
            r"""innerHTML|insertAdjacent|document\.write|\beval\(| style=|\son[a-z]+=["']|<style""", text
        )
        assert not re.search(r"<script(?! src=)", text)
    for page in ("/", "/docs"):
        assert ask(port, page)[2].startswith(b"<!doctype html>")


# Who may ask


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "[::1]:80", "192.168.7.8:1", "LOCALHOST"])
def test_names_of_this_machine_are_answered_to(port, host):
    assert ask(port, "/models", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "", "[", "a b"]
)
def test_other_names_are_refused_against_rebinding(port, host):
    status, _, told = ask(port, "/models", host=host)
    assert (status, told) == (421, {"error": "this server is not called by that name; use its address, or localhost"})
    assert post(port, "/predict", host=host)[0] == 421


def test_a_name_that_was_given_is_answered_to():
    with serving(names=["Lab.example"]) as port:
        assert ask(port, "/models", host="lab.example:80")[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://{}", 200), ("https://{}", 200), ("http://evil.example", 403), ("null", 403), ("http://[", 403)],
)  # fmt: skip
def test_pages_of_others_may_not_post(port, origin, status):
    found, _, told = post(port, "/predict", host=f"localhost:{port}", origin=origin.format(f"localhost:{port}"))
    assert found == status
    assert status == 200 or told == {"error": "requests of other pages are refused"}


def test_pages_of_others_are_known_by_the_browsers_word_too(port):
    for word, status in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]:
        assert post(port, "/predict", sec_fetch_site=word)[0] == status


def test_what_is_no_request_is_passed_on():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Guard(app)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_every_answer_is_sealed(port):
    answers = [
        ask(port, "/"), ask(port, "/static/page.js"), ask(port, "/nothing"), ask(port, "/models", host="evil.example"),
        ask(port, "/samples/0"), post(port, "/predict"), post(port, "/predict", b""), post(port, "/models"),
    ]  # fmt: skip
    for status, headers, _ in answers:
        assert {name: headers[name] for name in HEADERS} == HEADERS, status
        assert "access-control-allow-origin" not in headers
        assert "set-cookie" not in headers
        assert "server" not in headers
    policy = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)


def test_the_servers_own_fault_is_one_line_too(caplog):
    def broken(pixels):
        raise KeyError("secret")

    with serving(served(broken)) as port:
        status, headers, told = post(port, "/predict")
    assert (status, told) == (500, {"error": "the server failed at this; its terminal says how"})
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RuntimeError("Kernel size can't be greater\nthan input"), 422,
         "student cannot segment an image of 30×50: Kernel size can't be greater"),
        (MemoryError(), 413, "not enough memory for an image of 30×50; send a smaller one"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 413, "not enough memory for an image of 30×50"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_is_said(error, status, line):
    def fails(pixels):
        raise error

    with serving(served(fails)) as port:
        found, _, told = post(port, "/predict")
    assert found == status
    assert told["error"].startswith(line)


# How many at a time


class Held(Halves):
    """A model that waits until it is let go."""

    def __init__(self):
        super().__init__()
        self.go, self.inside, self.most, self.lock = threading.Event(), 0, 0, threading.Lock()

    def __call__(self, pixels):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.go.wait(PATIENCE)
        with self.lock:
            self.inside -= 1
        return super().__call__(pixels)


def test_one_is_worked_on_some_wait_the_rest_is_sent_away():
    model = Held()
    with serving(served(model), waiting=3) as port, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(post, port, "/predict?format=json", image_file(noise(20 + n, 30))) for n in range(12)]
        wait_until(lambda: sum(one.done() for one in asked) == 8)  # one in work, three in the line
        assert [one.result()[0] for one in asked if one.done()] == [503] * 8
        _, headers, told = next(one.result() for one in asked if one.done())
        assert headers["retry-after"] == "1"
        assert told == {"error": "busy: 4 requests are waiting; try again"}
        assert ask(port, "/models")[0] == 200  # what costs nothing needs no place
        model.go.set()
        served_ = [one.result() for one in asked if one.result()[0] == 200]
        assert len(served_) == 4
        assert (model.most, len(model.seen)) == (1, 4)
        assert sorted(told["height"] for _, _, told in served_) == sorted(seen.shape[0] for seen in model.seen)
        assert post(port, "/predict")[0] == 200


def test_what_nobody_waits_for_is_not_done():
    model = Held()
    with serving(served(model)) as port, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, port, "/predict")
        wait_until(lambda: model.inside == 1)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
            raw.sendall(b"")
        last = pool.submit(post, port, "/predict")
        wait_until(lambda: ask(port, "/models")[0] == 200)
        model.go.set()
        assert (first.result()[0], last.result()[0]) == (200, 200)
        assert len(model.seen) == 2


def test_an_image_that_does_not_come_in_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(intake, "PATIENCE", 0.3)
    with serving(waiting=0) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nstart")
            assert raw.recv(100).startswith(b"HTTP/1.1 408 ")
        assert post(port, "/predict")[0] == 200


def test_a_client_that_leaves_halfway_gives_its_place_back():
    with serving(waiting=0) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nstart")
        wait_until(lambda: post(port, "/predict")[0] == 200)


def test_nothing_is_written(monkeypatch):
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = image_file(noise(900, 1200), "BMP")
    with serving() as port:
        body, kind = form_of(("image", "x.bmp", large))
        assert len(body) > 3e6
        assert post(port, "/predict", body, content_type=kind)[0] == 200
    assert rolled == []


# Trained networks


def test_a_run_is_served_as_predict_writes_it(whole, tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    ((_, expected),) = predict(whole, [tmp_path / "x.png"], tmp_path / "out")
    model = load_served("student", whole, Runtime(torch.device("cpu")))
    with serving(model, samples=find_samples(whole, print)) as port:
        _, _, told = post(port, "/predict?format=rle")
        assert len(ask(port, "/samples")[2]["names"]) == 8
        assert np.array_equal(unpacked(told), expected.numpy())
        assert post(port, "/predict?sample=3", None)[0] == 200
    card = load_student(whole).card
    assert (model.classes, model.name) == (card["classes"], "whole")
    assert model.params == sum(parameter.numel() for parameter in load_student(whole).parameters())


def test_an_onnx_file_is_served_like_a_run(tmp_path):
    file = write_onnx(tmp_path / "light.onnx", None)
    (tmp_path / "x.png").write_bytes(PNG)
    expected = Predictor(file)(tmp_path / "x.png").ids
    with serving(load_served("student", file, Runtime(torch.device("cpu")))) as port:
        assert np.array_equal(unpacked(post(port, "/predict?format=rle")[2]), expected)
        (model,) = ask(port, "/models")[2]["models"]
    assert (model["name"], model["params"], model["classes"]) == ("light.onnx", None, CLASSES)


def test_a_student_s_file_keeps_its_size_and_range(tmp_path):
    torch.manual_seed(1)
    network = build_model("pspnet_resnet18_quarter", num_classes=2)
    facts = {"size": [32, 48], "image_range": [0, 1000]}
    save_student(tmp_path / "lone.safetensors", network, make_card(network, ["a", "b"], [], **facts))
    model = load_served("teacher", tmp_path / "lone.safetensors", Runtime(torch.device("cpu")))
    assert (model.size, model.name, len(model.palette)) == ([32, 48], tmp_path.name, 2)
    deep = image_file(noise()[..., 0].astype(np.uint16) * 3)
    (tmp_path / "deep.png").write_bytes(deep)
    ((_, expected),) = predict(tmp_path / "lone.safetensors", [tmp_path / "deep.png"], tmp_path / "out",
                               palette=[(0, 0, 0), (9, 9, 9)])  # fmt: skip
    with serving(model) as port:
        _, _, told = post(port, "/predict?format=rle", deep)
        assert np.array_equal(unpacked(told), expected.numpy())
        assert post(port, "/image", deep)[0] == 200
    said = []
    assert find_samples(tmp_path / "lone.safetensors", said.append).names == []
    assert said == []


def test_a_network_with_more_classes_than_names_says_so(tmp_path):
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    save_student(tmp_path / "s.safetensors", network, make_card(network, ["a", "b"], [(0, 0, 0), (9, 9, 9)]))
    with serving(load_served("student", tmp_path / "s.safetensors", Runtime(torch.device("cpu")))) as port:
        assert post(port, "/predict")[2] == {
            "error": "student cannot segment an image of 30×50: the network has 3 classes, its card names 2"
        }


def test_data_that_are_not_there_are_no_samples(whole, tmp_path):
    (tmp_path / "student.safetensors").write_bytes((whole / "student.safetensors").read_bytes())
    (tmp_path / "config.yaml").write_text("data: {name: camvid, root: /nowhere}\nstudent: {name: pspnet_resnet18}\n")
    said = []
    assert find_samples(tmp_path, said.append).names == []
    assert len(said) == 1
    assert said[0].startswith("no samples on the page: ")


# The command


def begin(*arguments):
    command = [sys.executable, "-m", "segdistill", "serve", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_serves_until_it_is_interrupted(whole):
    process = begin(whole, "--teacher", whole, "--port", "0", "--host", "localhost")
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving student whole, teacher whole on http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line + process.stderr.read()
        status, _, told = post(int(found[1]), "/predict?model=teacher&format=json")
        assert (status, told["model"]) == (200, "teacher")
        again = begin(whole, "--port", found[1])
        assert again.communicate(timeout=PATIENCE)[1] == (
            f"segdistill: port {found[1]} is in use; name another with --port, or 0 for a free one\n"
        )
        assert again.returncode == 2
        kept = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE)
        kept.request("GET", "/models")
        kept.getresponse().read()  # a connection that stays open does not keep the server alive
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["/nowhere"], "no student at /nowhere; give a run folder, or a .safetensors or .onnx file"),
        (
            ["WHOLE", "--teacher", "/nowhere"],
            "no student at /nowhere; give a run folder, or a .safetensors or .onnx file",
        ),
        (["WHOLE", "--host", "no.such.name.invalid"], "--host no.such.name.invalid: no such address"),
        (["WHOLE", "--host", "203.0.113.7"], "--host 203.0.113.7 --port 0: "),
        (["WHOLE", "--device", "cuda:77"], "device 'cuda:77' is not available here"),
    ],
)
def test_mistakes_are_one_line(segdistill, whole, arguments, line):
    given = [str(whole) if word == "WHOLE" else word for word in arguments]
    status, _, err = segdistill("serve", "--port", "0", *given)
    assert status == 2
    assert f"segdistill: {line}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("lab", False)],
)
def test_only_this_machine_alone_needs_no_warning(host, alone):
    assert is_loopback(host) == alone


@pytest.mark.parametrize("module", NEEDED)
def test_a_missing_extra_is_named(segdistill, whole, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = segdistill("serve", whole)
    assert status == 2
    assert err == f"segdistill: serve needs {module}; pip install 'segdistill[serve]'\n"


def test_another_host_is_warned_of(segdistill, whole, monkeypatch):
    from segdistill.deploy.serve import server

    class Stopped:
        def run(self, sockets):
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "make_server", lambda app: Stopped())
    status, out, err = segdistill("serve", whole, "--host", "0.0.0.0", "--port", "0")
    assert status == 0
    assert err == "--host 0.0.0.0: whoever reaches this machine may use the models; there is no password\n"
    assert re.fullmatch(r"serving student whole on http://0\.0\.0\.0:\d+\n", out)


def test_sockets_are_refused_with_what_helps(monkeypatch):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(ValueError, match=r"port \d+ is in use; name another"):
            bind("127.0.0.1", taken.getsockname()[1])

    def forbidden(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    with pytest.raises(ValueError, match="port 80 may not be used here; name one from 1024 on"):
        bind("127.0.0.1", 80)


@pytest.mark.slow
@pytest.mark.requires(Path("/proc/self/status").exists(), "Linux")
def test_five_hundred_requests_of_eight_clients():
    command = [sys.executable, "-c", "import serve, json; print(json.dumps(serve.soak(500, 8, (120, 160))))"]
    found = subprocess.run(command, cwd=REPOSITORY / "benchmarks", capture_output=True, text=True, check=True)
    told = json.loads(found.stdout)
    assert told["statuses"] == {"200": 500}
    assert told["growth_mib"] < 16  # the images, had they been kept, are 27
