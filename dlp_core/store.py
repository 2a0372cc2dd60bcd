"""Where a bank's bytes live: one small protocol over S3, a local folder and memory.

A key is a relative path of plain segments (`check_key`); nothing a caller passes leaves the store's root.
Writes are atomic: a reader sees the old object or the new one, never half of one. `put` can be conditional,
and two conditional writers of one key never both succeed. Errors are those of dlp_core.errors, whatever the
store is made of.

A store is used from any number of threads. It is not sent between processes: send its `uri` and open it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from dlp_core.errors import Conflict, DigestMismatch, InvalidRequest, NotFound, StoreUnavailable

MAX_KEY_BYTES = 1024
"""S3's limit on the length of a key, in UTF-8 bytes."""

CHUNK_BYTES = 1024 * 1024

_ABANDONED_S = 24 * 3600.0

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object's bytes, and the etag they had when they were read."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it. `size` is in bytes."""

    key: str
    size: int
    etag: str


class AdapterStore(Protocol):
    """A flat set of objects under one root.

    Every method raises InvalidRequest for a bad key and StoreUnavailable when the store does not answer or
    refuses access; reading a missing object raises NotFound.
    """

    @property
    def uri(self) -> str:
        """What `open_store` takes to open this store again, and what errors call it."""

    def get(self, key: str) -> StoredObject:
        """Reads a small object whole."""

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        """As `get`, or None if the object still has this etag: no byte of it is sent then."""

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        """Streams an object into the file `target`, replacing it.

        The file is not synced to the disk. Raises DigestMismatch as soon as the bytes cannot be the promised ones,
        and OSError if `target` cannot be written; `target` is then untouched.
        """

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Writes an object and returns its etag.

        `if_none_match` creates only; `if_match` replaces only the object of that etag. Raises Conflict
        otherwise. After a lost answer a store may retry, and then find its own write in the way: who gets
        Conflict reads the object back before giving up.
        """

    def head(self, key: str) -> ObjectInfo:
        """Size and etag of an object."""

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key. `prefix` is empty or ends in '/'."""

    def delete(self, key: str) -> None:
        """Removes an object; a missing one is fine."""


def open_store(uri: str) -> AdapterStore:
    """Opens `s3://bucket/prefix/`, a folder (`/path`, `path`, `file:///path`) or `memory://name`.

    Nothing is contacted or created yet. Raises InvalidRequest for anything else.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri or _CONTROL.search(uri):
        raise InvalidRequest(f"bank URI {uri!r} is empty or has control characters")
    if not separator:
        return FolderStore(Path(uri))
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc or not parts.path:
            raise InvalidRequest(f"bank URI {uri!r} must be file:///absolute/path")
        return FolderStore(Path(unquote(parts.path)))
    if scheme == "memory" and rest.strip("/"):
        return _memory_store(rest.strip("/"))
    if scheme == "s3":
        from dlp_core.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise InvalidRequest(f"bank URI {uri!r}: {bucket!r} is not the name of an S3 bucket")
        return S3Store(bucket, check_prefix(f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
    raise InvalidRequest(f"bank URI {uri!r} must be s3://bucket/prefix/, a folder, or memory://name")


def check_key(key: str) -> str:
    """Returns `key` if it names an object inside a store's root.

    Raises InvalidRequest for an empty, absolute or overlong key, one with `\\`, control characters, an empty
    segment, or a segment that starts with a dot (`..` climbs out; the folder store keeps its own files under a
    dot).
    """
    if not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES or "\\" in key or _CONTROL.search(key):
        raise InvalidRequest(
            f"object key {key[:80]!r} must be 1 to {MAX_KEY_BYTES} bytes without backslash or control characters"
        )
    if any(not segment or segment.startswith(".") for segment in key.split("/")):
        raise InvalidRequest(
            f"object key {key[:80]!r} must be relative, without empty segments and segments that start with '.'"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns `prefix` if it is empty or a valid key followed by '/'; raises InvalidRequest otherwise."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidRequest(f"prefix {prefix!r} must end in '/'")
        check_key(prefix[:-1])
    return prefix


def save_stream(chunks: Iterable[bytes], target: Path, *, source: str, size: int, sha256: str) -> None:
    """Writes `chunks` to `target` through a temporary file beside it, checking size and digest on the way.

    Whether the bytes survive a power loss is the caller's business: see `sync`. Raises DigestMismatch, naming
    `source`; then, as after any error, no file is left behind.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, received = hashlib.sha256(), 0
    try:
        with partial.open("xb") as file:
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    raise DigestMismatch(
                        f"{source} is longer than the {size} bytes its manifest promises; publish it again"
                    )
                digest.update(chunk)
                file.write(chunk)
            if received != size or digest.hexdigest() != sha256:
                raise DigestMismatch(
                    f"{source}: expected sha256 {sha256} ({size} bytes), found {digest.hexdigest()} "
                    f"({received} bytes); delete the object and publish it again"
                )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or the renames in a folder, would survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderStore:
    """A local folder as a store; several processes on one machine may share it.

    Writers take a lock file, so conditions hold between processes too; readers take none and work on a
    read-only folder. Own files live under `.dlp/`. Links that lead out of the folder are refused.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self._root)

    def get(self, key: str) -> StoredObject:
        with self._errors(key, reading=True), self._path(key).open("rb") as file:
            return StoredObject(file.read(), _etag(os.fstat(file.fileno())))

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        return None if self.head(key).etag == etag else self.get(key)

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        with self._errors(key, reading=True):
            file = self._path(key).open("rb")
        with file:
            source = f"object {key!r} in {self.uri}"
            save_stream(iter(lambda: file.read(CHUNK_BYTES), b""), target, source=source, size=size, sha256=sha256)

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        own = self._root / ".dlp"
        temporary = own / f"{uuid.uuid4().hex}.part"
        with self._errors(key):
            try:
                own.mkdir(parents=True, exist_ok=True)
                _write(temporary, body)
                with self._locked():
                    self._sweep(own)
                    found = _etag(path.stat()) if path.exists() else None
                    if (if_none_match and found is not None) or (if_match is not None and found != if_match):
                        raise _conflict(key, self.uri, created=if_none_match)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(path)
                    sync(path.parent)
                    return _etag(path.stat())
            finally:
                temporary.unlink(missing_ok=True)

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._errors(key, reading=True):
            if path.is_dir():
                raise IsADirectoryError
            stat = path.stat()
        return ObjectInfo(key, stat.st_size, _etag(stat))

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        start = self._path(check_prefix(prefix)[:-1]) if prefix else self._root
        with self._errors(prefix):
            return sorted(self._walk(start), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        if path.is_file():
            with self._errors(key), self._locked():
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self._root or any(folder.iterdir()):
                        break
                    folder.rmdir()

    def _sweep(self, own: Path) -> None:
        """Removes what writers left that were killed long ago."""
        for partial in own.glob("*.part"):
            with suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                    partial.unlink()

    def _walk(self, start: Path) -> Iterator[ObjectInfo]:
        for folder, folders, files in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(folder, name) for name in files if not name.startswith(".")):
                if path.resolve().is_relative_to(self._root.resolve()):
                    stat = path.stat()
                    yield ObjectInfo(path.relative_to(self._root).as_posix(), stat.st_size, _etag(stat))

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise InvalidRequest(f"object key {key!r} leads out of {self.uri} through a symbolic link")
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._root / ".dlp" / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _errors(self, key: str, *, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
                raise _not_found(key, self.uri) from None
            raise StoreUnavailable(
                f"object {key!r} in {self.uri}: {error.strerror or error}; check the folder's permissions and space"
            ) from error


class MemoryStore:
    """Objects in this process: for tests, and for banks that are built and served in one process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return f"memory://{self._name}"

    def get(self, key: str) -> StoredObject:
        data = self._read(key)
        return StoredObject(data, _content_etag(data))

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        found = self.get(key)
        return None if found.etag == etag else found

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        source = f"object {key!r} in {self.uri}"
        save_stream([self._read(key)], target, source=source, size=size, sha256=sha256)

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        check_key(key)
        data = body.read_bytes() if isinstance(body, Path) else bytes(body)
        with self._lock:
            found = self._objects.get(key)
            etag = None if found is None else _content_etag(found)
            if (if_none_match and etag is not None) or (if_match is not None and etag != if_match):
                raise _conflict(key, self.uri, created=if_none_match)
            self._objects[key] = data
        return _content_etag(data)

    def head(self, key: str) -> ObjectInfo:
        data = self._read(key)
        return ObjectInfo(key, len(data), _content_etag(data))

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = sorted((key, data) for key, data in self._objects.items() if key.startswith(prefix))
        return [ObjectInfo(key, len(data), _content_etag(data)) for key, data in found]

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _read(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            if key in self._objects:
                return self._objects[key]
        raise _not_found(key, self.uri)


_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def _memory_store(name: str) -> MemoryStore:
    """One store per name, so that `memory://x` is the same place wherever this process opens it."""
    with _memory_lock:
        return _memory_stores.setdefault(name, MemoryStore(name))


def _not_found(key: str, uri: str) -> NotFound:
    return NotFound(f"object {key!r} is not in {uri}; check the URI, or publish a bank there")


def _conflict(key: str, uri: str, *, created: bool) -> Conflict:
    if created:
        return Conflict(f"object {key!r} is already in {uri}")
    return Conflict(f"object {key!r} in {uri} was changed by somebody else; read it again and retry")


def _content_etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _etag(stat: os.stat_result) -> str:
    """Every put makes a new file, so inode, size and time tell one write from the next."""
    return f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _write(path: Path, body: bytes | Path) -> None:
    with path.open("xb") as file:
        if isinstance(body, Path):
            with body.open("rb") as source:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
        else:
            file.write(body)
        file.flush()
        os.fsync(file.fileno())
