"""Where a bank's bytes live: one small protocol over S3, a local folder and memory.

A key is a relative path of plain segments (`check_key`); nothing a caller passes leaves the store's root.
Writes are atomic: a reader sees the old object or the new one, never half of one. `put` can be conditional,
and two conditional writers of one key never both succeed. Errors are those of dlp_core.errors, whatever the
store is made of.

A store is used from any number of threads. It is not sent between processes: send its `uri` and open it there.
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


def check_key(key: str) -> str:
    """Returns `key` if it names an object inside a store's root.

    Raises InvalidRequest for an empty, absolute or overlong key, one with `\\`, control characters, an empty
    segment, or a segment that starts with a dot (`..` climbs out; the folder store keeps its own files under a
    dot).
    """
    if not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES or "\\" in key or CONTROL_CHARACTERS.search(key):
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


def not_found(key: str, uri: str) -> NotFound:
    return NotFound(f"object {key!r} is not in {uri}")


def conflict(key: str, uri: str, *, created: bool) -> Conflict:
    if created:
        return Conflict(f"object {key!r} is already in {uri}")
    return Conflict(f"object {key!r} in {uri} was changed by somebody else; read it again and retry")
