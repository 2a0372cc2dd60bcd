"""The object store that holds banks: one small protocol for S3, Google Cloud Storage, Azure, a local folder and memory.

A key is a relative path of plain segments (`check_key`); no key can leave the store's root. Writes are
atomic: a reader sees the old object or the new one, never a mixture. `put` can be conditional, and two
conditional writers of one key never both succeed. Every kind of store raises errors of dlp_core.errors.

A store is thread-safe. Do not send it to another process: send its `uri` and open it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dlp_core.errors import Conflict, InvalidRequest, NotFound

MAX_KEY_BYTES = 1024
"""S3's limit on the length of a key, in UTF-8 bytes."""


CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")

_USER_INFO = re.compile(r"//[^/@\s\"']*@")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes and their etag."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's metadata. `size` is in bytes."""

    key: str
    size: int
    etag: str


class AdapterStore(Protocol):
    """A flat set of objects under one root.

    Every method raises InvalidRequest for an invalid key and StoreUnavailable if the store does not respond or
    denies access; reading a missing object raises NotFound.
    """

    @property
    def uri(self) -> str:
        """The URI to open this store with `open_store`, also used in errors."""

    def get(self, key: str) -> StoredObject:
        """Read a small object completely."""

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        """Like `get`; None, without a transfer, if the object still has this etag."""

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        """Stream an object into the file `target`, replacing it.

        The file is not synced to disk. Raises DigestMismatch as soon as the bytes cannot match `size` and `sha256`,
        and OSError if `target` cannot be written; `target` then stays unchanged.
        """

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write an object and return its etag.

        `if_none_match` only creates; `if_match` only replaces the object with that etag. Raises Conflict
        otherwise. After a lost response a store may retry and conflict with its own write: on Conflict, read
        the object back before giving up.
        """

    def head(self, key: str) -> ObjectInfo:
        """The metadata of an object."""

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """All objects whose key starts with `prefix`, sorted by key. `prefix` is empty or ends in '/'."""

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is not an error."""


def check_key(key: str) -> str:
    """Return `key` if it names an object inside a store's root.

    Raises InvalidRequest as `check_relative`, and for a segment that starts with a dot: the folder store keeps its own
    files under one.
    """
    if any(segment.startswith(".") for segment in check_relative(key).split("/")):
        raise InvalidRequest(f"object key {key[:80]!r} must be without segments that start with '.'")
    return key


def check_relative(key: str) -> str:
    """Return `key` if it stays inside the folder or prefix that it is relative to.

    Raises InvalidRequest for an empty, absolute or overlong key, one with `\\`, control characters, or an empty, `.` or
    `..` segment.
    """
    if not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES or "\\" in key or CONTROL_CHARACTERS.search(key):
        raise InvalidRequest(
            f"object key {key[:80]!r} must be 1 to {MAX_KEY_BYTES} bytes without backslash or control characters"
        )
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise InvalidRequest(f"object key {key[:80]!r} must be relative, without empty, '.' or '..' segments")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or a valid key followed by '/'; raise InvalidRequest otherwise."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidRequest(f"prefix {prefix!r} must end in '/'")
        check_key(prefix[:-1])
    return prefix


def one_line(text: object) -> str:
    """`text` for an error: on one line, and without the name and password that a URL in it may have."""
    return " ".join(_USER_INFO.sub("//", str(text)).split())


def not_found(key: str, uri: str) -> NotFound:
    return NotFound(f"object {key!r} is not in {uri}")


def conflict(key: str, uri: str, *, created: bool) -> Conflict:
    if created:
        return Conflict(f"object {key!r} is already in {uri}")
    return Conflict(f"object {key!r} in {uri} was changed by another writer; read it again and retry")
