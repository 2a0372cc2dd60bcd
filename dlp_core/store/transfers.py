"""Many uploads or downloads, a few at once, and how long work of any kind says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from dlp_core.store.files import FileEntry, describe_files
from dlp_core.store.protocol import AdapterStore

J = TypeVar("J")
R = TypeVar("R")

_TRANSFERS = 8
"""Uploads or downloads at once: enough to hide a store's latency behind its bandwidth."""

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all: bytes of transfers, objects, jobs, steps."""


def silent(done: int, total: int) -> None:
    """The Progress that nobody is told."""


def put_unchanged(store: AdapterStore, key: str, path: Path, entry: FileEntry) -> bool:
    """Uploads a file. False if it no longer is what `entry` says; then nothing is left at `key`."""
    store.put(key, path)
    if describe_files(path.parent, [path.name]) == (entry,):
        return True
    store.delete(key)
    return False


def in_parallel(
    work: Callable[[J], R],
    jobs: Sequence[J],
    size: Callable[[R], int],
    total: int,
    progress: Progress = silent,
) -> list[R]:
    """Does all jobs, a few at once. The first error stops those not begun and is raised.

    `size` of a result, and `total` of them all, are what `progress` is told.
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
