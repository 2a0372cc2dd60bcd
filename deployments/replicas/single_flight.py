"""One computation per key, shared by all concurrent callers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SingleFlight(Generic[Value]):
    """Computes values in a thread and keeps the last `keep`. A failure is raised to its waiters and not kept.

    Use from one event loop.
    """

    def __init__(self, compute: Callable[[str], Value], *, keep: int) -> None:
        self._compute = compute
        self._keep = keep
        self._tasks: OrderedDict[str, asyncio.Task[Value]] = OrderedDict()

    async def get(self, key: str) -> Value:
        """The value of `key`. Cancelling one waiter does not affect the others."""
        if key not in self._tasks:
            task = asyncio.create_task(asyncio.to_thread(self._compute, key))
            task.add_done_callback(lambda done: self._forget_failure(key, done))
            self._tasks[key] = task
            while len(self._tasks) > self._keep:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(key)
        return await asyncio.shield(self._tasks[key])

    def _forget_failure(self, key: str, task: asyncio.Task[Value]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._tasks.get(key) is task:
            del self._tasks[key]
