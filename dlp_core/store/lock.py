"""Locks between processes of one machine (flock). The kernel releases them with the process: a crash leaves none."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class FileLock:
    """A lock on `path`, held from construction to the end of its `with` block. It also excludes other threads.

    A missing lock file is created; with `folder`, an existing folder itself is locked. Raises OSError.
    """

    def __init__(self, path: Path, *, shared: bool = False, folder: bool = False, wait: bool = True) -> None:
        """Without `wait`, raises BlockingIOError if another holds the lock."""
        self._descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self._descriptor)
            raise

    @classmethod
    def attempt(cls, path: Path, *, shared: bool = False, folder: bool = False) -> Self | None:
        """The lock, or None if another holds it."""
        try:
            return cls(path, shared=shared, folder=folder, wait=False)
        except BlockingIOError:
            return None

    def share(self) -> None:
        """Turn an exclusive lock into a shared one. Not atomic (flock(2)): check again what it protects."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
