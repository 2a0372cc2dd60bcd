"""An event loop whose clock leaps to the next timer when nothing else is left to do, so that intervals take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


class LeapingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Leaping(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Leaping(selectors.DefaultSelector):
    def __init__(self, loop: LeapingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits, and no timer will end it")
        if not ready and timeout is not None:
            self._loop.now += timeout
        return ready


def run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """What a coroutine returns that runs on such a loop. Raises RuntimeError if it would hang."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(coroutine)
