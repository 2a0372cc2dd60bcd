"""Parallel uploads and downloads, and progress reports of long work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_TRANSFERS = 8
"""Concurrent uploads or downloads: enough to hide a store's latency."""

Progress = Callable[[int, int], None]
"""Called with the amount done and the total: bytes, objects, jobs or steps."""


def silent(done: int, total: int) -> None:
    """A Progress that reports nothing."""


def in_parallel(
    work: Callable[[J], R],
    jobs: Sequence[J],
    size: Callable[[R], int],
    total: int,
    progress: Progress = silent,
) -> list[R]:
    """Run all jobs, a few at a time. The first error cancels those not started and is raised.

    `progress` receives the sum of `size(result)` so far, and `total`.
    """
    results: list[R] = []
    done = 0
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                done += size(results[-1])
                progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
