"""What the disk of this machine refuses: the mistake of whoever named a path, apart from the machine's own trouble."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from dlp_core.errors import DiskFull, DLPError, InvalidRequest, LocalDiskError

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
