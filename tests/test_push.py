"""Uploading to a hub: one that runs here, and one that does not."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import needs_package
from segdistill import cli
from segdistill.deploy.push import collect_uploads, push
from test_card import make_run


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push needs; what comes is kept in its server."""

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        seen, here = self.server.seen, f"http://127.0.0.1:{self.server.server_port}"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen.setdefault("paths", []).append(self.path)
        seen["token"] = self.headers.get("Authorization")
        if self.server.refuse:
            self.answer(self.server.refuse, {"error": "no"})
        elif self.path == "/api/repos/create":
            seen["repo"] = json.loads(body)
            self.answer(200, {"url": f"{here}/me/net", "name": "me/net", "id": "1"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kinds = {True: "lfs", False: "regular"}
            told = [
                {"path": f["path"], "uploadMode": kinds[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in files
            ]
            self.answer(200, {"files": told})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            told = [{**o, "actions": {"upload": {"href": f"{here}/lfs/{o['oid']}"}}} for o in objects]
            self.answer(200, {"transfer": "basic", "objects": told})
        elif "/commit/" in self.path:
            seen["commit"] = [json.loads(line) for line in body.splitlines()]
            address = f"{here}/me/net/commit/{'a' * 40}"
            self.answer(200, {"commitUrl": address, "commitOid": "a" * 40, "success": True})
        else:
            self.answer(200, {})

    def do_GET(self):
        self.answer(self.server.refuse or 200, {"id": "me/net", "siblings": []})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.setdefault("lfs", {})[self.path.rpartition("/")[2]] = body
        self.answer(200, {})


@pytest.fixture
def hub(monkeypatch):
    needs_package("huggingface_hub", "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.refuse = {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    needs_package("huggingface_hub", "hub")
    folder = make_run(tmp_path / "my_run", classes=["a", "b"])
    (folder / "net_int8.onnx").write_bytes(b"onnx" * 100)
    (folder / "checkpoint.pt").write_bytes(b"not for others")
    return folder


def test_everything_arrives_in_one_commit(run, hub):
    said = []
    address = push(run, "me/net", private=True, license="mit", say=said.append)
    assert address.endswith("/me/net/commit/" + "a" * 40)
    assert hub.seen["token"] == "Bearer hf_secret"
    assert (hub.seen["repo"]["name"], hub.seen["repo"]["organization"]) == ("net", "me")
    assert hub.seen["repo"].get("private") or hub.seen["repo"].get("visibility") == "private"
    header, *parts = hub.seen["commit"]
    assert "Upload my_run" in header["value"]["summary"]
    regular = {p["value"]["path"]: base64.b64decode(p["value"]["content"]) for p in parts if p["key"] == "file"}
    assert regular.keys() == {"README.md", "net_int8.onnx"}
    assert b"license: mit" in regular["README.md"]
    student = (run / "student.safetensors").read_bytes()
    (large,) = [p["value"] for p in parts if p["key"] == "lfsFile"]
    assert (large["path"], large["oid"]) == ("student.safetensors", hashlib.sha256(student).hexdigest())
    assert hub.seen["lfs"] == {large["oid"]: student}
    assert said[0].startswith("3 files, ")
    assert not (run / "README.md").exists()


def test_a_card_that_is_there_goes_along_and_so_does_what_is_named(run, hub):
    (run / "README.md").write_text("mine")
    push(run, "me/net", files=["*.json", "README.md"], revision="v2", token="hf_other", say=lambda line: None)
    regular = {p["value"]["path"]: p["value"].get("content") for p in hub.seen["commit"][1:]}
    assert base64.b64decode(regular["README.md"]) == b"mine"
    assert {"summary.json", "env.json", "eval_test.json"} < regular.keys()
    assert hub.seen["token"] == "Bearer hf_other"
    assert "/api/models/me/net/branch/v2" in hub.seen["paths"]
    assert "/api/models/me/net/commit/v2" in hub.seen["paths"]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(run, hub):
    said = []
    assert push(run, "me/net", dry_run=True, say=said.append) is None
    assert [line.split()[0] for line in said] == ["3", "README.md", "student.safetensors", "net_int8.onnx", "nothing"]
    assert "400" not in said[0]
    assert hub.seen == {}


@pytest.mark.parametrize(
    ("status", "line"),
    [(401, "401: the token is not valid there"), (403, "403: the token may not write there"), (500, "500: ")],
)
def test_a_refusal_is_one_line_without_the_token(run, hub, status, line):
    hub.refuse = status
    with pytest.raises(ValueError, match=line) as error:
        push(run, "me/net", say=lambda _: None)
    assert "\n" not in str(error.value)
    assert "hf_secret" not in str(error.value)


def test_no_connection_and_no_token_are_one_line(run, hub, monkeypatch, capsys):
    hub.server_close()
    hub.shutdown()
    with pytest.raises(ValueError, match=r"cannot reach http://127\.0\.0\.1:"):
        push(run, "me/net", say=lambda _: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("sys.argv", ["segdistill", "push", str(run), "me/net"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "no token: set HF_TOKEN or give --token" in capsys.readouterr().err


def test_the_command_prints_the_address(run, hub, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["segdistill", "push", str(run), "me/net", "--files", "summary.json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "/me/net/commit/" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("repo", "files", "line"),
    [
        ("net", [], "net: expected USER/NAME"),
        ("me/a b", [], "me/a b: no name of a repository"),
        ("me/net", ["../x"], "expected a name or pattern of files in"),
        ("me/net", ["/etc/passwd"], "expected a name or pattern of files in"),
        ("me/net", ["*.nothing"], r"--files \*.nothing: no such file in"),
    ],
)
def test_what_cannot_be_is_one_line(run, hub, repo, files, line):
    with pytest.raises(ValueError, match=line):
        push(run, repo, files=files, say=lambda _: None)
    assert hub.seen == {}


def test_a_damaged_student_is_not_uploaded(run):
    raw = (run / "student.safetensors").read_bytes()
    (run / "student.safetensors").write_bytes(raw[:-4] + b"abcd")
    with pytest.raises(ValueError, match="damaged"):
        collect_uploads(run)
    with pytest.raises(ValueError, match="is no run folder"):
        collect_uploads(run / "none")
