"""Passes the page's requests on to the server's API, with the credentials that stay here. The browser gets no secret,
and the API needs no CORS.

Only the routes that the page uses pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from deployments.console.settings import ConsoleSettings, is_loopback

CONNECT_S = 5.0
ANSWER_S = 330.0
"""Wait for the next bytes of an answer: longer than the server's own limit, after which it says so itself."""

GENERATION = frozenset({"v1/chat/completions", "v1/completions", "v1/route"})
"""Sent with the key, as an application would send them; all else goes with the admin token, if there is one."""
ALLOWED = {
    "GET": frozenset(
        {
            "health",
            "openapi.json",
            "v1/models",
            "v1/bank",
            "v1/bank/versions",
            "v1/bank/diff",
            "v1/bank/evaluations",
            "v1/requests",
        }
    ),
    "POST": GENERATION
    | {"v1/feedback"}
    | {f"v1/bank/{change}" for change in ("publish", "rollback", "pin", "unpin", "canary", "promote", "shadow")},
}
_PASSED_ON = ("content-type", "retry-after", "x-dlp-adapters", "x-dlp-ignored", "x-request-id")


class Api:
    """The server's API as the console may use it."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self.url = settings.url
        self._key, self._token = settings.key, settings.admin_token
        local = is_loopback(httpx.URL(settings.url).host)
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=not local,  # this machine is not behind a proxy
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def text(self, path: str) -> str:
        """The body of `GET path`. Raises httpx.HTTPError."""
        answer = await self._http.get(path, headers=self._headers(path))
        answer.raise_for_status()
        return answer.text

    async def forward(self, request: Request) -> Response:
        """The server's answer to a request of the page, as it comes."""
        path = request.path_params["path"]
        if path not in ALLOWED.get(request.method, ()):
            return problem(404, "unknown_url", f"the console does not pass on {request.method} /{path}")
        content = await request.body()
        headers = self._headers(path)
        if content:
            headers["content-type"] = "application/json"
        outgoing = self._http.build_request(
            request.method, f"/{path}", params=request.query_params, content=content or None, headers=headers
        )
        try:
            answer = await self._http.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            return problem(502, "unreachable", f"{self.url} does not answer ({_reason(error)}); is the server running?")
        kept = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        return StreamingResponse(_body(answer), answer.status_code, kept | {"cache-control": "no-store"})

    def _headers(self, path: str) -> dict[str, str]:
        secret = (self._key or self._token) if path in GENERATION else (self._token or self._key)
        return {} if secret is None else {"authorization": f"Bearer {secret}"}


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """What arrives, when it arrives. A browser that leaves closes the connection, which ends the generation."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    finally:
        await answer.aclose()


def problem(status: int, code: str, message: str) -> JSONResponse:
    """An error in the shape of the API's own."""
    error = {"message": message, "type": "console_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status)


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
