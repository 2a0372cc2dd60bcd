"""Local disk: verified writes, and the mapping of its errors."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dlp_core.errors import DigestMismatch, DiskFull, DLPError, InvalidRequest, LocalDiskError

CHUNK_BYTES = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PATH_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,  # a mount point
        errno.EEXIST,
        errno.EFBIG,  # more than is read: see documents.read_regular
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
        None,  # raised by readers of the content, such as gzip
    }
)


def save_stream(chunks: Iterable[bytes], target: Path, *, source: str, size: int, sha256: str) -> None:
    """Write `chunks` to `target` through a temporary file beside it, verifying size and digest.

    The file is not synced: see `sync`. Raises DigestMismatch, naming `source`. After any error no file is left
    behind.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, received = hashlib.sha256(), 0
    try:
        with partial.open("xb") as file:
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    raise DigestMismatch(f"{source} is longer than the {size} bytes in its manifest; publish it again")
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
    """Sync a file's bytes, or the renames in a folder, to disk: they then survive a power loss. On Windows, which
    syncs neither through a descriptor that only reads, nothing is done."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether the disk or the user's quota is full."""
    return error.errno in _FULL


def disk_error(
    error: OSError, what: str, *, mistake: type[DLPError] = InvalidRequest, action: str | None = None
) -> DLPError:
    """`error` as a DLPError: `what` ("<path>: cannot be read") with the system's reason.

    A `mistake`, with the `action` that fixes it, if another path or other permissions would help; otherwise DiskFull or
    LocalDiskError.
    """
    message = f"{what} ({error.strerror or error})"
    if is_full(error):
        return DiskFull(f"{message}; free some space on this machine and try again")
    if error.errno in _PATH_ERRORS:
        return mistake(message if action is None else f"{message}; {action}")
    return LocalDiskError(f"{message}; check this machine's disk, then try again")


@contextmanager
def disk_errors(what: str, *, mistake: type[DLPError] = InvalidRequest, action: str | None = None) -> Iterator[None]:
    """Raise every OSError of the block as its `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, what, mistake=mistake, action=action) from error
