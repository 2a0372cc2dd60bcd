"""The HTTP API of a running server. httpx's errors become those of dlp_core.errors here."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpx

from dlp_core.errors import DLPError, InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S = 5.0
ANSWER_S = 330.0
"""Wait for the next bytes of an answer; longer than limits.request_timeout_s, after which the server says so itself."""
LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")


class Unreachable(DLPError):
    """Nothing answers at the URL, or not to the end."""

    status = 503
    code = "unreachable"


class Refused(DLPError):
    """The server answered with an error; `status` and `code` are the ones it sent."""


class Server:
    """One server, whose `url` may end in /v1 as OpenAI's clients want it. Use as a context manager. Every method raises
    Unreachable and Refused, and the constructor InvalidRequest if `url` is none."""

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None) -> None:
        self.url = _base_url(url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            mounts=dict.fromkeys(LOOPBACK),  # never through a proxy
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def text(self, path: str) -> str:
        """The body of `GET path`."""
        with self._errors():
            answer = self._http.get(path)
        self._check(answer)
        return answer.text

    def json(self, path: str) -> dict[str, Any]:
        """The JSON object that `GET path` answers."""
        return self._object(self.text(path))

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """The server-sent events of `POST path`, up to `[DONE]`. Closing the iterator ends the request."""
        with self._errors(), self._http.stream("POST", path, json=body) as answer:
            if answer.is_error:
                answer.read()
            self._check(answer)
            for line in answer.iter_lines():  # the server writes one line an event, in ASCII
                if line == "data: [DONE]":
                    return
                if not line.startswith("data:"):
                    continue
                event = self._object(line.removeprefix("data:"))
                if "error" in event:
                    raise self._error(event, status=500)
                yield event
        raise Unreachable(f"{self.url}: the answer broke off; see whether the server is up")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise Unreachable(
                f"no server answers at {self.url}; start one with `dlp demo` or `dlp serve`, or name another with --url"
            ) from None
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url} did not answer in time; see whether the server is up") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url}: {error or type(error).__name__}; see whether the server is up") from None

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        try:
            found = json.loads(answer.text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("error"), dict):
            raise Unreachable(
                f"{answer.url} answers HTTP {answer.status_code}, and not as dlp does; name a dlp server with --url"
            )
        raise self._error(found, status=answer.status_code)

    def _error(self, found: Mapping[str, Any], *, status: int) -> Refused:
        error = found["error"]
        refused = Refused(str(error.get("message")))
        refused.status, refused.code = status, str(error.get("code"))
        return refused

    def _object(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(f"{self.url} does not answer as dlp does; name a dlp server with --url")
        return found


def _base_url(url: str) -> str:
    """`url` without a slash or /v1 at its end; http if it names no scheme."""
    named = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(named)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"--url {url!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"--url is {url!r}; it must be like {DEFAULT_URL}")
    return named.rstrip("/").removesuffix("/v1").rstrip("/")
