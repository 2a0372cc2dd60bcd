"""Small documents that others wrote: JSON and YAML files, read with a bound on their size and on what can go wrong.

`parse_json` and `parse_yaml` raise ValueError and nothing else, however the document is nested or spelt. `read_regular`
raises OSError for what is no regular file, leads out of its folder, or is too large.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import from_json

MAX_DOCUMENT_BYTES = 1 << 20
MAX_TENSORS_BYTES = 8 << 30


def parse_json(content: bytes | str) -> Any:
    """Any JSON value. Raises ValueError, also for nesting too deep to read."""
    return from_json(content, allow_inf_nan=True)


def parse_yaml(content: bytes | str) -> Any:
    """Any YAML value. Raises ValueError, also for nesting too deep to read, and for dates that do not exist."""
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        raise ValueError(f"not YAML or JSON{where}") from error


def read_regular(path: Path, limit: int = MAX_DOCUMENT_BYTES, *, inside: Path | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, without waiting for a writer. A link must not lead out of
    the folder `inside`. Raises OSError."""
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise OSError(errno.EINVAL, f"a link that leads out of its folder; copy the folder with cp -rL {inside}")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; at most {limit:,} are read")
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes")
    return content
