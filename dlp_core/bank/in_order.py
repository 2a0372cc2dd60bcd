"""Many jobs on a few threads, with the results in the order of the jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

WORKERS = 4
"""Few, because each result may hold an adapter of a gigabyte until it is taken."""


def in_order(work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
    """The result of each job, in order. The first job in order that fails raises its error, however the threads run;
    jobs behind it are not started."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
