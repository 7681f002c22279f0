"""What stands between a stranger's page and this server: names, origins, and what a browser may do with an answer."""

import ipaddress
import json
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """An application behind checks of `Host` and `Origin`; every answer, errors too, carries `HEADERS`.

    A page on the web can make its own name lead to 127.0.0.1 (DNS rebinding) and would then be the same origin as this
    server; but its name is in `Host`. So only addresses, `localhost` and this machine's names are answered to.

    Args:
        app: what is guarded.
        names: further names that this machine is reached by.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()):
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        status, fault = self._fault(scope["method"], Headers(scope=scope))
        if fault:
            body = json.dumps({"error": fault}).encode()
            start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await sealed({"type": "http.response.start", "status": status, "headers": start})
            await sealed({"type": "http.response.body", "body": body})
        else:
            await self.app(scope, receive, sealed)

    def _fault(self, method: str, headers: Headers) -> tuple[int, str]:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_here(host):
            return 421, "this server is not called by that name; use its address, or localhost"
        if method in ("GET", "HEAD"):
            return 0, ""  # what they give, no other page can read
        foreign = origin is not None and origin.lower().partition("://")[2] != host.lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "requests of other pages are refused"
        return 0, ""

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
