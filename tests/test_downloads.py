import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from segdistill.data import downloads
from segdistill.data.downloads import digests, download
from servers import Answer, serve

DATA = bytes(range(256)) * 40_000  # some 10 MB, in several pieces
OTHER = DATA[::-1]
MD5 = "md5:" + hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with serve() as server:
        server.files["x.tar"] = DATA
        yield server


def fetch(server, folder, **options):
    waits = []
    found = download(
        f"{server.url}/a/x.tar", folder / "x.tar", **{"checksum": MD5, "wait": waits.append, "timeout": 20, **options}
    )
    assert found == SHA256
    assert (folder / "x.tar").read_bytes() == DATA
    assert os.listdir(folder) == ["x.tar"]
    return waits


def test_a_file_comes_whole(tmp_path, server):
    seen = []
    assert fetch(server, tmp_path, progress=lambda *at: seen.append(at)) == []
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(server.asked) == 1
    assert "range" not in server.asked[0]


def test_digests_name_their_kind(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digests(tmp_path / "x", "md5:0") == [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "md5:900150983cd24fb0d6963f7d28e17f72",
    ]


def test_a_cut_connection_goes_on(tmp_path, server):
    server.answers = [Answer(cut=3_000_000), Answer(cut=2_000_000)]
    assert fetch(server, tmp_path) == [1.0, 1.0]
    assert [asked.get("range") for asked in server.asked] == [None, "bytes=3000000-", "bytes=5000000-"]
    assert server.asked[1]["if-range"] == '"one"'


def test_an_interrupted_process_goes_on(tmp_path, server):
    def stop(done, total):
        if done > 4_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, progress=stop)
    have = (tmp_path / "x.tar.part").stat().st_size
    assert have > 4_000_000
    fetch(server, tmp_path)
    assert server.asked[1]["range"] == f"bytes={have}-"


def test_a_server_without_ranges_starts_anew(tmp_path, server):
    server.answers = [Answer(cut=3_000_000), Answer(ranges=False)]
    fetch(server, tmp_path)


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changes_half_way_starts_anew(tmp_path, server, heeds):
    # Without a checksum nothing else would tell a mixture of two files.
    server.answers = [Answer(cut=3_000_000, data=OTHER, etag='"old"')]
    server.answers += [Answer(heed_if_range=heeds)]
    fetch(server, tmp_path, checksum=None)
    assert server.asked[1]["if-range"] == '"old"'
    assert len(server.asked) == (2 if heeds else 3)


def test_without_etags_the_size_tells(tmp_path, server):
    server.answers = [Answer(cut=3_000_000, data=OTHER + b"more", etag=None), Answer(etag=None)]
    server.usual = Answer(etag=None)
    fetch(server, tmp_path, checksum=None)


def test_a_weak_etag_is_not_asked_for(tmp_path, server):
    server.answers = [Answer(cut=3_000_000, etag='W/"x"', headers={"Last-Modified": "Sat, 1 Jan 2000 00:00:00 GMT"})]
    server.usual = Answer(heed_if_range=False, headers={"Last-Modified": "Sat, 1 Jan 2000 00:00:00 GMT"}, etag=None)
    fetch(server, tmp_path)
    assert server.asked[1]["if-range"] == "Sat, 1 Jan 2000 00:00:00 GMT"


def test_a_part_of_something_else_is_replaced(tmp_path, server):
    (tmp_path / "x.tar.part").write_bytes(OTHER[:1_000_000])  # no note beside it: the server goes on with it
    fetch(server, tmp_path)
    assert [asked.get("range") for asked in server.asked] == ["bytes=1000000-", None]


def test_a_part_that_is_whole_needs_nothing(tmp_path, server):
    (tmp_path / "x.tar.part").write_bytes(DATA)
    (tmp_path / "x.tar.part.json").write_text(json.dumps({"validator": '"one"', "total": len(DATA)}))
    fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_a_part_that_is_too_long_starts_anew(tmp_path, server):
    (tmp_path / "x.tar.part").write_bytes(DATA + b"more")
    (tmp_path / "x.tar.part.json").write_text("no JSON")
    fetch(server, tmp_path)


def test_a_busy_server_is_asked_again(tmp_path, server):
    server.answers = [Answer(status=503, headers={"Retry-After": "7"}), Answer(status=429), Answer(status=500)]
    lines = []
    assert fetch(server, tmp_path, say=lines.append) == [7.0, 2.0, 4.0]
    assert lines[0] == "x.tar: the server answers 503 Service Unavailable; trying again in 7 s"
    assert len(lines) == 3


def test_a_silent_server_is_asked_again(tmp_path, server):
    server.answers = [Answer(stall=2_000_000)]
    assert fetch(server, tmp_path, timeout=0.3)
    assert "range" in server.asked[1]


def test_it_gives_up_in_one_line_and_keeps_what_came(tmp_path, server):
    server.answers, waits = [Answer(cut=3_000_000)], []
    server.usual = Answer(cut=0)
    with pytest.raises(ValueError, match=r"ended at 3000000 of 10240000 bytes, 3 times in a row; 3000000 bytes are ke"):
        fetch(server, tmp_path, attempts=3, wait=waits.append)
    assert waits == [1.0, 2.0]
    server.usual = Answer(stall=0)
    with pytest.raises(ValueError, match=r"nothing came for 0.1 s, 1 times"):
        fetch(server, tmp_path, attempts=1, timeout=0.1)
    assert (tmp_path / "x.tar.part").read_bytes() == DATA[:3_000_000]
    server.usual = Answer()
    fetch(server, tmp_path)


def test_a_server_that_always_cuts_at_one_place_is_left(tmp_path, server):
    server.usual = Answer(cut=3_000_000, ranges=False)
    with pytest.raises(ValueError, match="4 times in a row"):
        fetch(server, tmp_path, attempts=4)
    assert len(server.asked) == 4


def test_nobody_there(tmp_path):
    with serve() as gone:
        pass
    with pytest.raises(ValueError, match="Connection refused, 2 times in a row; 0 bytes are kept"):
        fetch(gone, tmp_path, attempts=2)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(tmp_path, server, status):
    server.answers = [Answer(status=status)]
    with pytest.raises(ValueError, match=f"x.tar: the server answers {status}") as error:
        fetch(server, tmp_path)
    assert "\n" not in str(error.value)
    assert len(server.asked) == 1


def test_wrong_bytes_are_removed(tmp_path, server):
    server.usual = Answer(data=OTHER)
    wrong = hashlib.md5(OTHER).hexdigest()
    with pytest.raises(ValueError, match=f"the 10240000 bytes that came have md5:{wrong}, expected {MD5}; they were"):
        fetch(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_of_unknown_length(tmp_path, server):
    server.usual = Answer(length=False)
    seen = []
    fetch(server, tmp_path, progress=lambda *at: seen.append(at))
    assert seen[-1] == (len(DATA), None)
    server.usual = Answer(length=False, cut=1000)  # nothing but the checksum can tell
    (tmp_path / "x.tar").unlink()
    with pytest.raises(ValueError, match="the 1000 bytes that came have md5"):
        fetch(server, tmp_path)


def test_more_than_expected_is_cut_off(tmp_path, server):
    with pytest.raises(ValueError, match="more than 5000000 bytes, which is not the file that was expected"):
        fetch(server, tmp_path, limit=5_000_000)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line_and_keeps_what_came(tmp_path, server, monkeypatch):
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, chunk):
            if self.file.tell() > 3_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode="r", **o: (Full if mode in ("ab", "wb") else lambda f: f)(
            opened(path, mode, **o)))  # fmt: skip
        with pytest.raises(ValueError, match=r"cannot write .*x.tar.part: No space left on device; see to it, then"):
            fetch(server, tmp_path)
    assert (tmp_path / "x.tar.part").stat().st_size > 3_000_000
    fetch(server, tmp_path)
    assert "range" in server.asked[-1]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "x.tar", ""])
def test_only_http_is_fetched(tmp_path, url):
    with pytest.raises(ValueError, match="expected an address that begins with http:// or https://"):
        download(url, tmp_path / "x")


def test_what_is_no_address(tmp_path):
    with pytest.raises(ValueError, match="not an address"):
        download("http://127.0.0.1:nine/x", tmp_path / "x", wait=lambda s: None)


def test_a_redirect_to_a_file_of_this_machine_is_refused(tmp_path, server):
    server.usual = Answer(status=302, headers={"Location": "file:///etc/passwd"})
    with pytest.raises(ValueError, match="the server answers 302"):
        fetch(server, tmp_path)


def test_an_untrusted_certificate_is_final(tmp_path, monkeypatch):
    import ssl
    import urllib.error

    wrong = ssl.SSLCertVerificationError(1, "x")
    wrong.verify_message = "self-signed certificate"

    def refuse(*_, **__):
        raise urllib.error.URLError(wrong)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)
    with pytest.raises(ValueError, match=r"certificate is not trusted \(self-signed certificate\)"):
        download("https://127.0.0.1/x", tmp_path / "x")
