"""Opens a store by its URI."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dlp_core.errors import InvalidRequest
from dlp_core.store.folder import FolderStore
from dlp_core.store.memory import memory_store
from dlp_core.store.protocol import CONTROL_CHARACTERS, AdapterStore, check_prefix

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(uri: str) -> AdapterStore:
    """Open `s3://bucket/prefix/`, a folder (`/path`, `path`, `file:///path`) or `memory://name`.

    Nothing is contacted or created. Raises InvalidRequest for anything else.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri or CONTROL_CHARACTERS.search(uri):
        raise InvalidRequest(f"bank URI {uri!r} is empty or has control characters")
    if not separator:
        return FolderStore(Path(uri))
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc or not parts.path:
            raise InvalidRequest(f"bank URI {uri!r} must be file:///absolute/path")
        return FolderStore(Path(unquote(parts.path)))
    if scheme == "memory" and rest.strip("/"):
        return memory_store(rest.strip("/"))
    if scheme == "s3":
        from dlp_core.store.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise InvalidRequest(f"bank URI {uri!r}: {bucket!r} is not the name of an S3 bucket")
        return S3Store(bucket, check_prefix(f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
    raise InvalidRequest(f"bank URI {uri!r} must be s3://bucket/prefix/, a folder, or memory://name")
