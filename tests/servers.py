"""A web server on 127.0.0.1 that behaves as badly as a test wants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """How one request is answered.

    Attributes:
        status: other than 200 and 206, without a body.
        cut: bytes of the body after which the connection ends.
        stall: bytes of the body after which nothing comes any more.
        ranges: whether Range is heeded.
        heed_if_range: whether If-Range is.
        data: instead of the file.
        etag: instead of the file's; None: none.
        length: whether the body's length is said.
        headers: besides.
    """

    status: int = 200
    cut: int | None = None
    stall: int | None = None
    ranges: bool = True
    heed_if_range: bool = True
    data: bytes | None = None
    etag: str | None = '"one"'
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """Files by name, the answers to the next requests, and what was asked.

    Attributes:
        url: of the server, without a slash at its end.
        files: name → bytes.
        answers: to the next requests; thereafter, `usual`.
        usual: the answer to every other request.
        asked: the headers of all requests, in order, and the path under `path`.
        let_go: ends what stalls.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    usual: Answer = field(default_factory=Answer)
    asked: list[dict[str, str]] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve() -> Iterator[Server]:
    """A server while the context is open."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            server.asked.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
            _answer(self, server, server.answers.pop(0) if server.answers else server.usual)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # a client that goes away is what tests are about
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def _answer(request: BaseHTTPRequestHandler, server: Server, how: Answer) -> None:
    name = request.path.rpartition("/")[2]
    data = how.data if how.data is not None else server.files.get(name)
    status = 404 if data is None else how.status
    headers = dict(how.headers)
    body = b""
    if status == 200:
        begin, wanted = 0, request.headers.get("Range")
        if_range = request.headers.get("If-Range")
        if wanted and how.ranges and (not how.heed_if_range or if_range in (None, how.etag)):
            begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            if begin >= len(data):
                status, headers["Content-Range"] = 416, f"bytes */{len(data)}"
        if status != 416:
            body = data[begin:]
            headers |= {"Content-Length": str(len(body))} if how.length else {}
            headers |= {"ETag": how.etag} if how.etag else {}
    request.send_response(status)
    for key, value in headers.items():
        request.send_header(key, value)
    request.end_headers()
    end = min((n for n in (how.cut, how.stall) if n is not None), default=None)
    request.wfile.write(body[:end])
    request.wfile.flush()
    if how.stall is not None:
        server.let_go.wait(60)
    request.close_connection = True
