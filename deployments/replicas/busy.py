"""How much of its time a replica computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyTime:
    """Adds up the seconds inside `measured`; work side by side counts twice. Use from one event loop."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._asked = time.perf_counter()

    @contextmanager
    def measured(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    def share(self) -> float:
        """Of the time since this was last asked. What is still under way counts when it ends."""
        now = time.perf_counter()
        share = self._seconds / max(now - self._asked, 1e-9)
        self._seconds, self._asked = 0.0, now
        return share
