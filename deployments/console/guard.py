"""Who may use the page. The console holds secrets of the server's, so a page of somebody else's, open in the same
browser, must not reach it.

    Host             on a loopback address, only names of this machine, not others that resolve to it (DNS rebinding)
    Origin           whatever changes something comes from the console's own page
    Authorization    HTTP Basic with the console's password, where it has one
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.console.settings import ConsoleSettings, is_loopback

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
SAFE = ("GET", "HEAD")
OPEN = "/console/health"
"""For probes: says nothing."""


class Guard:
    """Refuses what does not come from the console's own page, and gives every answer the page's security headers."""

    def __init__(self, app: ASGIApp, settings: ConsoleSettings) -> None:
        self._app = app
        self._password = None if settings.password is None else _digest(settings.password)
        self._any_host = not is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = None if scope["path"] == OPEN else self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if not self._any_host and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return PlainTextResponse("the console answers to names of this machine alone, such as 127.0.0.1", 421)
        if not _own(method, host, headers):
            return PlainTextResponse("this request comes from another page than the console's", 403)
        if self._password is not None and not hmac.compare_digest(_digest(_presented(headers)), self._password):
            return PlainTextResponse(
                "the console's password is missing or wrong",
                401,
                {"www-authenticate": 'Basic realm="dlp console", charset="UTF-8"'},
            )
        return None


def _own(method: str, host: str, headers: Headers) -> bool:
    """Whether a request comes from the console's page, or from no page."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    if method in SAFE:  # a link from elsewhere may open the page; nothing else may be read from there
        return site in ("same-origin", "none") or headers.get("sec-fetch-mode") == "navigate"
    return site == "same-origin" and (origin is None or urlsplit(origin).netloc == host)


def _presented(headers: Headers) -> str:
    """The password of an Authorization header; empty if there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
