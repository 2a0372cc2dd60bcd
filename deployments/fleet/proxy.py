"""What Serve's HTTP servers do first, its own proxy and the replicas behind HAProxy alike.

They decode the names of all headers and the values of some as UTF-8, and answer 500 where that fails. VARIABLE names
`middlewares`, whose result they put in front.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "deployments.fleet.proxy.middlewares"


def middlewares() -> list[Middleware]:
    return [Middleware(ReadableHeaders)]


class ReadableHeaders:
    """Replaces what is not UTF-8 in header values, and drops headers whose names are not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = [(name, _readable(value)) for name, value in scope["headers"] if _readable(name) == name]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _readable(text: bytes) -> bytes:
    return text.decode(errors="replace").encode()
