"""The share of time a replica spends computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyTime:
    """Sums the seconds spent inside `measured`; concurrent work counts twice. Use from one event loop."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last_call = time.perf_counter()

    @contextmanager
    def measured(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    def share(self) -> float:
        """The busy share of the time since the last call. Work in progress counts when it ends."""
        now = time.perf_counter()
        share = self._seconds / max(now - self._last_call, 1e-9)
        self._seconds, self._last_call = 0.0, now
        return share
