"""JSON Lines: one object per line, plain or compressed (`.gz`)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlp_core.errors import InvalidRequest
from dlp_core.store.disk import disk_error
from dlp_core.store.documents import parse_json


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its location, `<path>:<line>`. Blank lines are skipped.

    Raises InvalidRequest, naming file and line, for an unreadable or truncated file, a line that is not UTF-8, not JSON
    or not an object, and a file without objects.
    """
    empty = True
    for where, line in _lines(path):
        if line.strip():
            empty = False
            yield where, _object(line, where)
    if empty:
        raise InvalidRequest(f"{path}: holds no rows")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                number += 1
                yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        what = f"{path}:{number + 1}: cannot be read" if number else f"{path}: cannot be read"
        raise disk_error(error, what) if isinstance(error, OSError) else InvalidRequest(f"{what} ({error})") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line.rstrip().decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise InvalidRequest(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f'{where}: a row must be an object, {{"name": value, ...}}')
    return value
