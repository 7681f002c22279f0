"""A headless Chromium that is driven over a pipe: its DevTools protocol, without a library."""

import base64
import fcntl
import itertools
import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from conftest import PATIENCE

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-breakpad",
)  # fmt: skip

WATCH = """
window.faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective + " " + event.blockedURI));
"""


class Tab:
    """One page in a new browser.

    Args:
        browser: path of a Chromium.
        profile: folder that it may write to.
    """

    def __init__(self, browser: str, profile: Path):
        ends = [os.pipe(), os.pipe()]  # the browser reads commands from its descriptor 3 and answers on 4
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ends[0][0], ends[1][1])]
        command = [browser, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]

        def hand_over():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, close_fds=False,
            preexec_fn=hand_over,  # `pass_fds` would want 3 and 4 to be open here already
        )  # fmt: skip
        for fd in (*theirs, ends[0][0], ends[1][1]):
            os.close(fd)
        self._in, self._out = ends[1][0], ends[0][1]
        self._rest, self._numbers, self._session = b"", itertools.count(1), None
        self.events: list[dict] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # none of the browser's own processes outlives the test
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters):
        """One command of the protocol; its result."""
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        message = json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0"
        while message:
            message = message[os.write(self._out, message) :]
        while True:
            told = self._receive()
            if told.get("id") == number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self.events.append(told)

    def _receive(self) -> dict:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0, until - time.monotonic()))[0], "the browser says nothing"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def evaluate(self, code: str):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.evaluate(code):
            assert time.monotonic() < until, f"never true: {code}"
            time.sleep(0.05)

    def open(self, address: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({address!r}) && document.readyState === 'complete'")

    def screen(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Set the size of the screen, and whether its user likes it dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        shared = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Move the mouse with its button down."""
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", clickCount=1)
        for share in (0.25, 0.5, 0.75, 1):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", clickCount=1)

    def drop(self, x: float, y: float, file: Path) -> None:
        """Drop a file on the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, file: Path) -> None:
        """Put a file into a field, as its dialogue does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def picture(self, path: Path) -> None:
        """Save what the whole page looks like."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requested(self) -> list[str]:
        """The addresses that the page has asked for."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent]
