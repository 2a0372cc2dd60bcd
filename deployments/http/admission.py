"""How many completions a key may have at once, in one ingress replica: so that no tenant takes all its places."""

from __future__ import annotations

from collections import Counter

from dlp_core.errors import DLPError, InvalidRequest


class TooManyRequests(DLPError):
    status = 429
    code = "too_many_requests"


class Admission:
    """Counts the completions of each caller. A request counts as one until it is known how many it asks for. Used on
    one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: Counter[str] = Counter()

    def enter(self, caller: str, places: int = 1, *, held: int = 0) -> None:
        """Admit a request, or more of one that has `held` places already, until `leave`. Raises TooManyRequests if the
        caller would have more than it may have, and InvalidRequest if the request is more by itself."""
        if held + places > self._limit:
            raise InvalidRequest(f"a key may have {self._limit} completions at once here; ask for fewer", param="n")
        if self._running[caller] + places > self._limit:
            raise TooManyRequests(
                f"key {caller!r} has {self._running[caller]} requests at once here, and its limit is {self._limit}; "
                "wait for some to end",
                retry_after=1.0,
            )
        self._running[caller] += places

    def leave(self, caller: str, places: int = 1) -> None:
        self._running[caller] -= places
        if not self._running[caller]:
            del self._running[caller]
