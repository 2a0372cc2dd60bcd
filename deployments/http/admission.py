"""How many requests a key may have at once, in one ingress replica: so that no tenant takes all its places."""

from __future__ import annotations

from collections import Counter

from dlp_core.errors import DLPError


class TooManyRequests(DLPError):
    status = 429
    code = "too_many_requests"


class Admission:
    """Counts the requests of each caller. Used on one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: Counter[str] = Counter()

    def enter(self, caller: str) -> None:
        """Admit a request, until `leave`. Raises TooManyRequests if the caller has as many as it may have."""
        if self._running[caller] >= self._limit:
            raise TooManyRequests(
                f"key {caller!r} has {self._limit} requests at once here, which is its limit; wait for some to end",
                retry_after=1.0,
            )
        self._running[caller] += 1

    def leave(self, caller: str) -> None:
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
