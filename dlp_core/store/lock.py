"""Locks between processes of one machine. The kernel releases them with the process: a crash leaves none."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Self

import filelock

_POLL_S = 0.01


class FileLock:
    """An exclusive lock on the file `path`, held from construction to the end of its `with` block. It also excludes
    other threads.

    A missing file is created, with its folder. Raises OSError.
    """

    def __init__(self, path: Path, *, wait: bool = True, remove: bool = False) -> None:
        """Without `wait`, raises BlockingIOError if another holds the lock. `remove` deletes the file at the end: those
        who wait make a new one."""
        self._removed = path if remove else None
        # without flock there is no lock: one that outlives its process would have to be removed by hand
        self._lock = filelock.FileLock(
            path, mode=0o644, thread_local=False, is_singleton=False, fallback_to_soft=False, poll_interval=_POLL_S
        )
        try:
            self._lock.acquire(blocking=wait)
        except filelock.Timeout:
            raise BlockingIOError(f"{path} is locked") from None

    @classmethod
    def attempt(cls, path: Path, *, remove: bool = False) -> Self | None:
        """The lock, or None if another holds it."""
        try:
            return cls(path, wait=False, remove=remove)
        except BlockingIOError:
            return None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._removed is not None:
            with suppress(OSError):  # Windows keeps a file that is open
                self._removed.unlink()
        self._lock.release()


class ReadWriteLock:
    """A lock on the file `path` that many may share, or one hold alone; otherwise as FileLock, but its folder must
    exist. The file is an empty SQLite database, whose locks every platform has, and is never deleted."""

    def __init__(self, path: Path, *, shared: bool, wait: bool = True) -> None:
        """Without `wait`, raises BlockingIOError if another holds the lock in a way that excludes this one."""
        self._path = path
        path.touch(mode=0o644)  # raises the system's reason, which SQLite does not tell
        self._lock = self._locked(shared=shared, wait=wait)

    @classmethod
    def attempt(cls, path: Path, *, shared: bool) -> Self | None:
        """The lock, or None if another holds it in a way that excludes this one."""
        try:
            return cls(path, shared=shared, wait=False)
        except BlockingIOError:
            return None

    def share(self) -> None:
        """Turn an exclusive lock into a shared one. Not atomic: check again what it protects."""
        self._lock.close()
        self._lock = self._locked(shared=True, wait=True)

    def _locked(self, *, shared: bool, wait: bool) -> filelock.ReadWriteLock:
        try:
            lock = filelock.ReadWriteLock(self._path, is_singleton=False)
            try:
                (lock.acquire_read if shared else lock.acquire_write)(blocking=wait)
            except BaseException:
                lock.close()
                raise
        except filelock.Timeout:
            raise BlockingIOError(f"{self._path} is locked") from None
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error
        return lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._lock.close()
