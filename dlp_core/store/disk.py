"""The disk of this machine: bytes written to it and checked on the way, and what its errors mean."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dlp_core.errors import DigestMismatch, DiskFull, DLPError, InvalidRequest, LocalDiskError

CHUNK_BYTES = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OF_THE_PATH = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,  # a mount point
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
        None,  # raised by what reads the content, such as gzip
    }
)


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


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, has no space left."""
    return error.errno in _FULL


def disk_error(
    error: OSError, what: str, *, mistake: type[DLPError] = InvalidRequest, action: str | None = None
) -> DLPError:
    """`error` as one of this library, told as `what` ("<path>: cannot be read") with the system's reason.

    `mistake`, with the `action` that mends it, where another path or other permissions would help; otherwise DiskFull
    or LocalDiskError.
    """
    told = f"{what} ({error.strerror or error})"
    if is_full(error):
        return DiskFull(f"{told}; make room on this machine and try again")
    if error.errno in _OF_THE_PATH:
        return mistake(told if action is None else f"{told}; {action}")
    return LocalDiskError(f"{told}; look after this machine, then try again")


@contextmanager
def disk_errors(what: str, *, mistake: type[DLPError] = InvalidRequest, action: str | None = None) -> Iterator[None]:
    """Raises every OSError of the block as `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, what, mistake=mistake, action=action) from error
