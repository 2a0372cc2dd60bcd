"""Opens a store by its URI. Nothing else in the product looks at what a URI begins with."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dlp_core.errors import InvalidRequest, StoreUnavailable
from dlp_core.store.folder import FolderStore
from dlp_core.store.memory import memory_store
from dlp_core.store.protocol import CONTROL_CHARACTERS, AdapterStore, check_prefix

PLACES = "s3://, gs:// or az://bucket/prefix/, or a folder"
"""What people may write, for messages and help."""

LOCATIONS = "a folder, s3://, gs:// or az://bucket/prefix/, or org/name of the Hugging Face hub"
"""Where a base model may be: see dlp_core.store.model_location."""

_BUCKETS = {
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
}
"""How each kind of store may name a bucket; a container, in Azure's words."""


def is_uri(location: str) -> bool:
    """Whether a location is in a store, as opposed to a folder's path."""
    return "://" in location


def open_store(uri: str) -> AdapterStore:
    """Open `s3://bucket/prefix/`, `gs://bucket/prefix/`, `az://container/prefix/`, a folder (`/path`, `path`,
    `file:///path`) or `memory://name`.

    Nothing is contacted or created. Raises InvalidRequest for anything else, StoreUnavailable if the kind of store is
    not installed or its settings cannot be used.
    """
    scheme, _, rest = uri.partition("://")
    if not uri or CONTROL_CHARACTERS.search(uri):
        raise InvalidRequest(f"bank URI {uri!r} is empty or has control characters")
    if not is_uri(uri):
        return FolderStore(Path(uri))
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc or not parts.path:
            raise InvalidRequest(f"bank URI {uri!r} must be file:///absolute/path")
        return FolderStore(Path(unquote(parts.path)))
    if scheme == "memory" and rest.strip("/"):
        return memory_store(rest.strip("/"))
    if scheme in _BUCKETS:
        bucket, _, prefix = rest.partition("/")
        if not _BUCKETS[scheme].fullmatch(bucket):
            kind = {"s3": "an S3 bucket", "gs": "a bucket of Google Cloud Storage", "az": "a container of Azure"}[
                scheme
            ]
            raise InvalidRequest(f"bank URI {uri!r}: {bucket!r} cannot be the name of {kind}")
        return _open_bucket(scheme, bucket, check_prefix(f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
    raise InvalidRequest(f"bank URI {uri!r} must be {PLACES}, or memory://name")


def _open_bucket(scheme: str, bucket: str, prefix: str) -> AdapterStore:
    if scheme == "s3":
        from dlp_core.store.s3 import S3Store

        return S3Store(bucket, prefix)
    try:
        from dlp_core.store.cloud import CloudStore
        from dlp_core.store.cloud_settings import CLOUDS
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise StoreUnavailable(
            f"{scheme}:// needs obstore, which is not installed; run: pip install 'dlp-serve[clouds]'"
        ) from None
    return CloudStore(CLOUDS[scheme], bucket, prefix)
