"""A local folder as a store; several processes on one machine may share it."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dlp_core.errors import InvalidRequest, StoreUnavailable
from dlp_core.store.disk import CHUNK_BYTES, disk_error, is_full, save_stream, sync
from dlp_core.store.lock import FileLock
from dlp_core.store.protocol import ObjectInfo, StoredObject, check_key, check_prefix, conflict, not_found

_ABANDONED_S = 24 * 3600.0


class FolderStore:
    """A local folder as a store; several processes on one machine may share it.

    Writers lock a file, so conditions also hold between processes; readers do not, and work on a read-only
    folder. The store's own files are in `.dlp/`. Links that lead out of the folder are refused.
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
        internal = self._root / ".dlp"
        temporary = internal / f"{uuid.uuid4().hex}.part"
        with self._errors(key):
            try:
                internal.mkdir(parents=True, exist_ok=True)
                _write(temporary, body)
                with self._locked():
                    self._sweep(internal)
                    etag = _etag(path.stat()) if path.exists() else None
                    if (if_none_match and etag is not None) or (if_match is not None and etag != if_match):
                        raise conflict(key, self.uri, created=if_none_match)
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

    def _sweep(self, internal: Path) -> None:
        """Remove temporary files of writers that were killed long ago."""
        for partial in internal.glob("*.part"):
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

    def _locked(self) -> FileLock:
        return FileLock(self._root / ".dlp" / "lock")

    @contextmanager
    def _errors(self, key: str, *, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
                raise not_found(key, self.uri) from None
            if is_full(error):
                raise disk_error(error, f"object {key!r} cannot be written to {self.uri}") from error
            raise StoreUnavailable(
                f"object {key!r} in {self.uri}: {error.strerror or error}; check the folder's permissions and space"
            ) from error


def _etag(stat: os.stat_result) -> str:
    """An etag. Every put creates a new file, so inode, size and time distinguish two writes."""
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
