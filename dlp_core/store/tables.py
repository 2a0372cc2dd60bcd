"""Files of records, read one record at a time: JSON lines and CSV, plain or compressed (`.gz`), and Parquet.

A file that is called neither `.csv` nor `.parquet` has JSON lines.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlp_core.errors import InvalidRequest
from dlp_core.store.disk import disk_error
from dlp_core.store.documents import parse_json

MAX_LINE_BYTES = 64 << 20
"""What is longer is no row, but a file of another kind."""

_BATCH = 1024
"""Rows of a Parquet file in memory at a time."""


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its location, `<path>:<line>`; of a Parquet file, `<path>: row <number>`. Blank lines
    are skipped. Cells of CSV are strings, None where they are empty.

    Raises InvalidRequest, naming file and line, for an unreadable or truncated file, a line that is not UTF-8, not JSON
    or not an object, a row of CSV that does not match the header, and a file without objects; also for Parquet where
    pyarrow is not installed.
    """
    format_ = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    read = {".csv": _csv, ".parquet": _parquet}.get(format_.lower(), _json_lines)
    empty = True
    for item in read(path):
        empty = False
        yield item
    if empty:
        raise InvalidRequest(f"{path}: holds no rows")


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        if line.strip():
            yield where, _object(line, where)


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    last = f"{path}:1"

    def texts() -> Iterator[str]:
        nonlocal last
        for last, line in _lines(path):
            yield _text(line, last)

    reader = csv.reader(texts(), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InvalidRequest(f"{path}:1: the header has a name twice")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                raise InvalidRequest(f"{where}: has {len(cells)} cells, and the header has {len(header)}")
            yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise InvalidRequest(f"{last}: not CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InvalidRequest(f"{path}: pyarrow reads Parquet, and is not installed: pip install pyarrow") from None
    if path.suffix == ".gz":
        raise InvalidRequest(f"{path}: Parquet is compressed inside; unpack the file")
    number = 0
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except OSError as error:
        raise disk_error(error, f"{path}: cannot be read") from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"{path}: cannot be read after row {number}" if number else f"{path}: cannot be read"
        raise InvalidRequest(f"{what} ({str(error).partition(chr(10))[0]})") from error


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidRequest(
                        f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; write a row on a line"
                    )
                yield f"{path}:{number}", line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        what = f"{path}:{number + 1}: cannot be read" if number else f"{path}: cannot be read"
        raise disk_error(error, what) if isinstance(error, OSError) else InvalidRequest(f"{what} ({error})") from error


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(_text(line.rstrip(), where))
    except ValueError as error:
        if line.strip() in (b"[", b"{"):
            raise InvalidRequest(f"{where}: one JSON document over several lines; write each row on a line") from error
        raise InvalidRequest(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f'{where}: a row must be an object, {{"name": value, ...}}, on a line of its own')
    return value
