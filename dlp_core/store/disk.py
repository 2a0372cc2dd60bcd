"""Bytes to the local disk, checked on the way."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from dlp_core.errors import DigestMismatch

CHUNK_BYTES = 1024 * 1024


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
