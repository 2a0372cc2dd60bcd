"""Google Cloud Storage and Azure Blob Storage as stores, over obstore: Rust's `object_store`, which signs and retries.

Conditions are the cloud's own. Azure's name an etag (`If-None-Match: *`, `If-Match`). Google's name a generation
(`x-goog-if-generation-match`), which its listings leave out, so an etag is what this store hands out for both: a write
on condition looks up which generation has the etag, and names that one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotModifiedError

from dlp_core.errors import NotFound, StoreUnavailable
from dlp_core.store.cloud_errors import map_error
from dlp_core.store.cloud_settings import Cloud
from dlp_core.store.disk import CHUNK_BYTES, save_stream
from dlp_core.store.protocol import ObjectInfo, StoredObject, check_key, check_prefix, conflict

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from obstore import PutMode

PARTS_AT_ONCE = 1
"""Of one file. Several files are uploaded at once, and each part must be through before the client loses patience."""


class _Threads:
    """The threads of the client. They start with its first request, and a fork leaves them behind but shares what they
    wait for: a request in the child would hang for ever, and so would the parent's next one."""

    started = False
    left_behind = False

    @classmethod
    def after_fork(cls) -> None:
        cls.left_behind = cls.started


os.register_at_fork(after_in_child=_Threads.after_fork)


class CloudStore:
    """Objects under one prefix of one bucket, or of what Azure calls a container. `prefix` is empty or ends in '/'.

    Every method raises StoreUnavailable in a forked child of a process that has used a store of this class.
    """

    def __init__(self, cloud: Cloud, bucket: str, prefix: str = "") -> None:
        """Raises StoreUnavailable for settings or credentials that cannot be used; contacts nobody."""
        self._cloud = cloud
        self._bucket = bucket
        self._prefix = check_prefix(prefix)
        try:
            self._client, self._endpoint = cloud.connect(bucket)
        except BaseError as error:
            raise map_error(error, cloud=cloud, key="", uri=self.uri, endpoint=cloud.name) from error

    @property
    def uri(self) -> str:
        return f"{self._cloud.scheme}://{self._bucket}/{self._prefix}"

    def get(self, key: str) -> StoredObject:
        path = self._path(key)
        with self._errors(key):
            result = obstore.get(self._client, path)
            return StoredObject(bytes(result.bytes()), _bare(result.meta["e_tag"]))

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        path = self._path(key)
        with self._errors(key):
            try:
                result = obstore.get(self._client, path, options={"if_none_match": _quoted(etag)})
                return StoredObject(bytes(result.bytes()), _bare(result.meta["e_tag"]))
            except NotModifiedError:
                return None

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        self._path(key)
        save_stream(self._chunks(key), target, source=f"object {key!r} in {self.uri}", size=size, sha256=sha256)

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        with _readable(body) as content, self._errors(key, conditional=if_none_match or if_match is not None):
            mode = self._mode(key, if_none_match=if_none_match, if_match=if_match)
            result = obstore.put(self._client, path, content, mode=mode, max_concurrency=PARTS_AT_ONCE)
        return _bare(result["e_tag"])

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._errors(key):
            meta = obstore.head(self._client, path)
        return ObjectInfo(key, meta["size"], _bare(meta["e_tag"]))

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        start = self._prefix + check_prefix(prefix)
        objects = []
        with self._errors(""):
            for page in obstore.list(self._client, start or None, chunk_size=1000):
                for meta in page:
                    if meta["path"].startswith(self._prefix):  # not so of a marker for the prefix itself
                        key = meta["path"].removeprefix(self._prefix)
                        objects.append(ObjectInfo(key, meta["size"], _bare(meta["e_tag"])))
        return sorted(_without_folders(objects), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            with self._errors(key):
                obstore.delete(self._client, path)
        except NotFound:
            pass

    def _chunks(self, key: str) -> Iterator[bytes]:
        # In a generator, errors of whoever writes the chunks to disk do not pass here.
        with self._errors(key):
            yield from obstore.get(self._client, self._path(key)).stream(CHUNK_BYTES)

    def _mode(self, key: str, *, if_none_match: bool, if_match: str | None) -> PutMode:
        if if_none_match:
            return "create"
        if if_match is None:
            return "overwrite"
        if not self._cloud.by_generation:
            return {"e_tag": _quoted(if_match)}
        meta = obstore.head(self._client, self._path(key))
        if _bare(meta["e_tag"]) != if_match:
            raise conflict(key, self.uri, created=False)
        return {"version": meta["version"]}

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _errors(self, key: str, *, conditional: bool = False) -> Iterator[None]:
        if _Threads.left_behind:
            raise StoreUnavailable(
                f"{self.uri} cannot be used in a process that was forked from one that used {self._cloud.name}; start "
                "the process by spawning it"
            )
        _Threads.started = True
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise map_error(
                error, cloud=self._cloud, key=key, uri=self.uri, endpoint=self._endpoint, conditional=conditional
            ) from error


def _readable(body: bytes | Path) -> AbstractContextManager[bytes | IO[bytes]]:
    return nullcontext(body) if isinstance(body, bytes) else body.open("rb")


def _bare(etag: str | None) -> str:
    """An etag without quotes: Azure's listings have none, its headers do."""
    return (etag or "").removeprefix('"').removesuffix('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _without_folders(objects: Sequence[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Leaves out a console's markers for folders: obstore lists "a/" as an empty object "a"."""
    folders = {info.key[:end] for info in objects for end, letter in enumerate(info.key) if letter == "/"}
    return (info for info in objects if info.size or info.key not in folders)
