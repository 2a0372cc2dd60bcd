"""A bounded, content-addressed cache of adapter and router files on local disk, shared by a node's processes.

    root/<sha256>/        one entry: its files, complete, checked and sealed
    root/.locks/<sha256>  held shared while an entry is in use, exclusively while it is filled or removed
    root/.partial/<n>-*   a download under way that will need n bytes

An entry appears by one rename, after every byte was checked. Which process may do what is decided by file
locks (flock), which the kernel drops with the process: a crash leaves nothing locked, and what it left half
done is swept away when room is next needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from dlp_core.bank import AdapterEntry, RouterEntry
from dlp_core.errors import AdapterRefused, AdapterUnavailable, StoreUnavailable
from dlp_core.store import AdapterStore

Entry = AdapterEntry | RouterEntry

_SEAL_NS = 10**18
"""Modification time given to a checked file (September 2001): whoever writes to it later breaks the seal."""

_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9]+-[0-9a-f]{32}")
_ATTEMPTS = 8
"""Rounds of fetching and finding evicted before giving up; one is the rule."""


class DiskCache:
    """At most `max_bytes` of adapters and routers under `root`. Blocking; use from any number of threads.

    Least recently used entries make room; one that is leased, by whichever process, is never removed.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root.expanduser().absolute()
        self._max_bytes = max_bytes
        self._locks = self._root / ".locks"
        self._partial = self._root / ".partial"
        self._guard = threading.Lock()
        self._filling: dict[str, Future[None]] = {}

    @contextmanager
    def lease(self, store: AdapterStore, entry: Entry) -> Iterator[Path]:
        """Yields the folder with the entry's files, fetched if need be, and keeps it until the block ends.

        However many threads and processes ask at once, the files are downloaded once. Hold a lease while
        reading, not longer: it keeps the entry from being evicted.

        Raises AdapterRefused if the entry is larger than the cache, DigestMismatch if the store holds other
        bytes than the manifest promises, AdapterUnavailable if it cannot be fetched now.
        """
        if entry.size > self._max_bytes:
            raise AdapterRefused(
                f"{entry} has {entry.size} bytes, the disk cache {self._root} may hold {self._max_bytes}; "
                "raise the cache's max_bytes"
            )
        folder = self._root / entry.digest.removeprefix("sha256:")
        for _ in range(_ATTEMPTS):
            with _reported(entry, self._root):
                self._locks.mkdir(parents=True, exist_ok=True)
                self._partial.mkdir(exist_ok=True)
                lock = _Lock(self._locks / folder.name, fcntl.LOCK_SH)
            with lock:
                if _intact(folder, entry):
                    os.utime(folder)
                    yield folder
                    return
            self._fill_once(store, entry, folder)
        raise AdapterUnavailable(
            f"{entry} is evicted from {self._root} as fast as it is fetched; raise the cache's max_bytes "
            f"({self._max_bytes})",
            retry_after=1.0,
        )

    def fetch(self, store: AdapterStore, entry: Entry) -> Path:
        """Makes sure the entry is on disk and returns its folder, which may be evicted at any time: to read it,
        take a `lease`. Raises what `lease` raises."""
        with self.lease(store, entry) as folder:
            return folder

    def used_bytes(self) -> int:
        """Bytes of all entries and of the downloads under way, by all processes."""
        reserved = sum(int(path.name.partition("-")[0]) for path in self._matching(self._partial, _PARTIAL))
        return reserved + sum(_size(path) for path in self._matching(self._root, _ENTRY))

    def _fill_once(self, store: AdapterStore, entry: Entry, folder: Path) -> None:
        """One thread fills; the others of this process wait for it and share its error."""
        with self._guard:
            waiting = self._filling.get(folder.name)
            mine = self._filling[folder.name] = Future() if waiting is None else waiting
        if waiting is not None:
            return waiting.result()
        try:
            with _reported(entry, self._root):
                self._fill(store, entry, folder)
            mine.set_result(None)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._guard:
                del self._filling[folder.name]

    def _fill(self, store: AdapterStore, entry: Entry, folder: Path) -> None:
        with _Lock(self._locks / folder.name, fcntl.LOCK_EX):
            if _intact(folder, entry):
                return  # another process was faster
            if folder.exists():
                shutil.rmtree(folder)
            with self._room(entry) as partial:
                for file in entry.files:
                    target = partial / file.path
                    store.download(entry.key(file.path), target, size=file.size, sha256=file.sha256)
                    target.chmod(0o444)
                    os.utime(target, ns=(_SEAL_NS, _SEAL_NS))
                partial.rename(folder)

    @contextmanager
    def _room(self, entry: Entry) -> Iterator[Path]:
        """A folder to download into, whose bytes are set aside until it is gone or has become an entry."""
        with _Lock(self._locks / "room", fcntl.LOCK_EX):
            self._sweep()
            self._evict(entry)
            partial = self._partial / f"{entry.size}-{uuid.uuid4().hex}"
            partial.mkdir()
            held = _Lock(partial, fcntl.LOCK_EX, folder=True)
        with held:
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _sweep(self) -> None:
        """Removes what downloaders left that are no more: those alive hold a lock on their folder."""
        for path in self._matching(self._partial, _PARTIAL):
            with suppress(BlockingIOError, FileNotFoundError), _Lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, folder=True):
                shutil.rmtree(path)

    def _evict(self, entry: Entry) -> None:
        excess = self.used_bytes() + entry.size - self._max_bytes
        for path in sorted(self._matching(self._root, _ENTRY), key=_last_used):
            if excess <= 0:
                return
            with suppress(BlockingIOError), _Lock(self._locks / path.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
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


def _intact(folder: Path, entry: Entry) -> bool:
    """Whether all files have their size and their seal. Their bytes were checked when they were sealed."""
    try:
        stats = [(folder / file.path).stat() for file in entry.files]
    except (FileNotFoundError, NotADirectoryError):
        return False
    return all(
        (stat.st_size, stat.st_mtime_ns) == (file.size, _SEAL_NS) for stat, file in zip(stats, entry.files, strict=True)
    )


class _Lock:
    """An flock on `path`, from construction to the end of its `with` block. A missing lock file is created.

    Raises BlockingIOError if `mode` has LOCK_NB and another holds it.
    """

    def __init__(self, path: Path, mode: int, *, folder: bool = False) -> None:
        self._descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, mode)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


@contextmanager
def _reported(entry: Entry, root: Path) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise AdapterUnavailable(f"{entry} cannot be fetched: {error.message}", retry_after=5.0) from error
    except OSError as error:
        raise AdapterUnavailable(
            f"{entry} cannot be cached in {root}: {error.strerror or error}; check its permissions and space",
            retry_after=5.0,
        ) from error


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # it may be on its way out
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
