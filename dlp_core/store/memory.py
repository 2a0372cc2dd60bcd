"""An in-memory store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from dlp_core.store.disk import save_stream
from dlp_core.store.protocol import ObjectInfo, StoredObject, check_key, check_prefix, conflict, not_found


class MemoryStore:
    """Objects in this process's memory: for tests, and for banks built and served in one process."""

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
        stored = self.get(key)
        return None if stored.etag == etag else stored

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        source = f"object {key!r} in {self.uri}"
        save_stream([self._read(key)], target, source=source, size=size, sha256=sha256)

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        check_key(key)
        data = body.read_bytes() if isinstance(body, Path) else bytes(body)
        with self._lock:
            existing = self._objects.get(key)
            etag = None if existing is None else _content_etag(existing)
            if (if_none_match and etag is not None) or (if_match is not None and etag != if_match):
                raise conflict(key, self.uri, created=if_none_match)
            self._objects[key] = data
        return _content_etag(data)

    def head(self, key: str) -> ObjectInfo:
        data = self._read(key)
        return ObjectInfo(key, len(data), _content_etag(data))

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            objects = sorted((key, data) for key, data in self._objects.items() if key.startswith(prefix))
        return [ObjectInfo(key, len(data), _content_etag(data)) for key, data in objects]

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _read(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            if key in self._objects:
                return self._objects[key]
        raise not_found(key, self.uri)


_memory_stores: dict[str, MemoryStore] = {}


_memory_lock = threading.Lock()


def memory_store(name: str) -> MemoryStore:
    """The store of this name: `memory://x` is the same store wherever this process opens it."""
    with _memory_lock:
        return _memory_stores.setdefault(name, MemoryStore(name))


def _content_etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
