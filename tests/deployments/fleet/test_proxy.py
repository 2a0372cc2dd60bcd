"""The filter in front of Serve's HTTP servers."""

from __future__ import annotations

from typing import Any

from ray._common.utils import import_attr
from starlette.middleware import Middleware

from deployments.fleet import proxy


async def test_what_is_not_utf8_is_replaced_or_dropped() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])

    async def nothing(*_: Any) -> Any:
        return None

    headers = [(b"x-request-id", b"caf\xe9"), (b"x-\xff", b"1"), (b"accept", "ü".encode()), (b"host", b"a")]
    scope = {"type": "http", "headers": headers}
    await proxy.ReadableHeaders(app)(scope, nothing, nothing)
    await proxy.ReadableHeaders(app)({"type": "lifespan"} | scope | {"type": "lifespan"}, nothing, nothing)
    replaced, untouched = seen
    assert replaced == [(b"x-request-id", "caf\ufffd".encode()), (b"accept", "ü".encode()), (b"host", b"a")]
    assert untouched == headers


def test_serve_can_import_it() -> None:
    (middleware,) = import_attr(proxy.CALLBACK)()
    assert isinstance(middleware, Middleware)
