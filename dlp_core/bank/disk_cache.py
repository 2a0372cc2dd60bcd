"""A bounded, content-addressed cache of adapter and router files on local disk, shared by a node's processes.

    root/<sha256>/        one entry: its files, complete and verified, and their seal (dlp_core/bank/seal.py)
    root/.locks/<sha256>  held shared while an entry is in use, exclusively while it is filled or removed
    root/.locks/room      held while bytes are counted, reserved or freed
    root/.partial/<n>-*   a download in progress that needs n bytes; its folder is locked meanwhile

An entry appears by one rename, after every byte was verified. Processes coordinate by file locks: a crash leaves
nothing locked, and its partial downloads are removed when space is next needed.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dlp_core.bank.manifest import Blob
from dlp_core.bank.seal import SEAL_FILE, is_intact, reseal, seal
from dlp_core.errors import AdapterMissing, AdapterRefused, AdapterUnavailable, NotFound, StoreUnavailable
from dlp_core.store.files import FileEntry
from dlp_core.store.lock import FileLock, ReadWriteLock
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import in_parallel

_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9]+-[0-9a-f]{32}")
_ATTEMPTS = 8
"""Attempts to fetch an entry that is evicted again before it is used; one is usually enough."""


class DiskCache:
    """At most `max_bytes` of adapters and routers under `root`. Blocking; use from any number of threads.

    The least recently used entries are evicted; an entry leased by any process is never removed.
    """

    def __init__(self, root: Path, max_bytes: int, *, on_fetch: Callable[[Blob, float], None] | None = None) -> None:
        """`on_fetch(entry, seconds)` is called after each download, on the thread that asked for the entry."""
        self._root = root.expanduser().absolute()
        self._max_bytes = max_bytes
        self._on_fetch = on_fetch
        self._locks = self._root / ".locks"
        self._partial = self._root / ".partial"
        self._guard = threading.Lock()
        self._filling: dict[str, Future[None]] = {}

    @contextmanager
    def lease(self, store: AdapterStore, entry: Blob) -> Iterator[Path]:
        """Yield the folder with the entry's files, fetched if necessary, and keep it until the block ends.

        Concurrent threads and processes share one download. Hold a lease while
        reading, not longer: it keeps the entry from being evicted.

        Raises AdapterRefused if the entry is larger than the cache, DigestMismatch if the store's bytes
        differ from the manifest, AdapterMissing if it has none, AdapterUnavailable if the entry cannot be
        fetched now.
        """
        if entry.size > self._max_bytes:
            raise AdapterRefused(
                f"{entry} has {entry.size} bytes, the disk cache {self._root} may hold {self._max_bytes}; "
                "raise the cache's max_bytes"
            )
        folder = self._root / entry.digest.removeprefix("sha256:")
        for _ in range(_ATTEMPTS):
            lock = self._open(entry, folder) or self._fill_once(store, entry, folder)
            if lock is not None:
                with lock:
                    os.utime(folder)
                    yield folder
                    return
        raise AdapterUnavailable(
            f"{entry} is evicted from {self._root} as fast as it is fetched; raise the cache's max_bytes "
            f"({self._max_bytes})",
            retry_after=1.0,
        )

    def fetch(self, store: AdapterStore, entry: Blob) -> Path:
        """Ensure the entry is on disk and return its folder, which may be evicted at any time: to read it, take a
        `lease`. Raises what `lease` raises."""
        with self.lease(store, entry) as folder:
            return folder

    def digests(self) -> set[str]:
        """Digests of the entries on disk."""
        if not self._root.is_dir():
            return set()
        return {f"sha256:{path.name}" for path in self._matching(self._root, _ENTRY)}

    def _open(self, entry: Blob, folder: Path) -> ReadWriteLock | None:
        """A shared lock on an intact entry, or None. Never blocks: `_fill_once` waits for downloads."""
        with _reported(entry, self._root), ExitStack() as undo:
            self._locks.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            lock = ReadWriteLock.attempt(self._locks / folder.name, shared=True)
            if lock is not None:
                undo.enter_context(lock)
                if is_intact(folder, entry.files):
                    undo.pop_all()
                    return lock
        return None

    def _fill_once(self, store: AdapterStore, entry: Blob, folder: Path) -> ReadWriteLock | None:
        """One thread fills the entry and gets its lock; the process's other threads wait and share its error."""
        with self._guard:
            running = self._filling.get(folder.name)
            fill = self._filling[folder.name] = Future() if running is None else running
        if running is not None:
            running.result()
            return None
        try:
            with _reported(entry, self._root):
                lock = self._fill(store, entry, folder)
            fill.set_result(None)
            return lock
        except BaseException as error:
            fill.set_exception(error)
            raise
        finally:
            with self._guard:
                del self._filling[folder.name]

    def _fill(self, store: AdapterStore, entry: Blob, folder: Path) -> ReadWriteLock | None:
        with ExitStack() as undo:
            lock = ReadWriteLock(self._locks / folder.name, shared=False)
            undo.enter_context(lock)
            # Another process may have filled it meanwhile, or before the last boot.
            if not (is_intact(folder, entry.files) or reseal(folder, entry.files)):
                if folder.exists():
                    shutil.rmtree(folder)
                began = time.perf_counter()
                with self._room(entry) as partial:
                    _download(store, entry, partial)
                    with self._counting():
                        partial.rename(folder)
                if self._on_fetch is not None:
                    self._on_fetch(entry, time.perf_counter() - began)
            # Kept, not released: a fresh entry must not be evicted before its first use.
            lock.share()
            if not is_intact(folder, entry.files):
                return None
            undo.pop_all()
            return lock

    @contextmanager
    def _room(self, entry: Blob) -> Iterator[Path]:
        """A folder to download into; its bytes are reserved until it is removed or becomes an entry."""
        with self._counting():
            self._sweep()
            self._evict(entry)
            partial = self._partial / f"{entry.size}-{uuid.uuid4().hex}"
            held = FileLock(self._locks / partial.name, remove=True)
            partial.mkdir()
        with held:
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _counting(self) -> FileLock:
        """The lock that excludes other reservations, new entries and evictions."""
        return FileLock(self._locks / "room")

    def _sweep(self) -> None:
        """Remove the partial downloads of dead processes: a live one holds a lock on the name of its folder."""
        for path in self._matching(self._partial, _PARTIAL):
            if (lock := FileLock.attempt(self._locks / path.name, remove=True)) is not None:
                with lock, suppress(FileNotFoundError):
                    shutil.rmtree(path)

    def _evict(self, entry: Blob) -> None:
        entries = self._matching(self._root, _ENTRY)
        reserved = sum(int(path.name.partition("-")[0]) for path in self._matching(self._partial, _PARTIAL))
        excess = reserved + sum(map(_size, entries)) + entry.size - self._max_bytes
        for path in sorted(entries, key=_last_used):
            if excess <= 0:
                return
            if (lock := ReadWriteLock.attempt(self._locks / path.name, shared=False)) is not None:
                with lock:
                    excess -= _size(path)
                    shutil.rmtree(path)
        if excess > 0:
            raise AdapterUnavailable(
                f"{entry} needs {entry.size} bytes; the disk cache {self._root} ({self._max_bytes} bytes) is full of "
                "adapters in use; retry, or raise its max_bytes",
                retry_after=1.0,
            )

    @staticmethod
    def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
        """Our own folders only: whatever else lies there is neither counted nor removed."""
        return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _download(store: AdapterStore, entry: Blob, folder: Path) -> None:
    """Fetch, verify and seal an entry's files, in parallel to pay the store's latency once."""

    def fetch(file: FileEntry) -> int:
        target = folder / file.path
        store.download(entry.key(file.path), target, size=file.size, sha256=file.sha256)
        target.chmod(0o444)
        return file.size

    in_parallel(fetch, entry.files, lambda size: size, entry.size)
    seal(folder, entry.files)


@contextmanager
def _reported(entry: Blob, root: Path) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise AdapterMissing(f"{entry} is gone: {error.message}; publish its bank again, or roll back") from error
    except StoreUnavailable as error:
        raise AdapterUnavailable(f"{entry} cannot be fetched: {error.message}", retry_after=5.0) from error
    except OSError as error:
        raise AdapterUnavailable(
            f"{entry} cannot be cached in {root}: {error.strerror or error}; check its permissions and space",
            retry_after=5.0,
        ) from error


def _size(folder: Path) -> int:
    """Bytes of an entry's files, without its seal."""
    total = 0
    with suppress(FileNotFoundError):  # it may be being removed
        for path in folder.iterdir():
            total += path.stat().st_size if path.name != SEAL_FILE else 0
    return total


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
