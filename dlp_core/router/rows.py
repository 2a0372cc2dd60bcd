"""Rows to train and judge a router: JSON lines `{"task": adapter name or null, "input": text}`, plain or `.gz`.

Other keys are ignored. `"task": null` marks a background row: a prompt that fits no adapter.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlp_core.adapter import validate_name
from dlp_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One prompt and the adapter it belongs to, None where it fits no adapter."""

    task: str | None
    input: str


def read_task_rows(paths: Iterable[Path], *, labelled: bool = True) -> list[TaskRow]:
    """Reads all rows of the files, in order. With `labelled=False` the task is ignored and the input may be empty.

    Raises InvalidRequest, naming file and line, for a file that cannot be read, is no JSON lines or holds no rows, and
    for a row without "task" (a valid adapter name or null) or without text in "input".
    """
    rows: list[TaskRow] = []
    for path in paths:
        before = len(rows)
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                lines = enumerate(file, start=1)
                rows.extend(_parse(line, f"{path}:{number}", labelled) for number, line in lines if line.strip())
        except (OSError, EOFError) as error:
            raise InvalidRequest(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        if len(rows) == before:
            raise InvalidRequest(f"{path}: holds no rows")
    return rows


def _parse(line: str, where: str, labelled: bool) -> TaskRow:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    text = record.get("input") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InvalidRequest(f'{where}: a row is an object with a text in "input"')
    if not labelled:
        return TaskRow(None, text)
    if not text.strip():
        raise InvalidRequest(f'{where}: "input" is empty; give the prompt or drop the row')
    if "task" not in record:
        raise InvalidRequest(f'{where}: "task" is missing; give an adapter name, or null for a prompt that fits none')
    task = record["task"]
    if task is None:
        return TaskRow(None, text)
    if not isinstance(task, str):
        raise InvalidRequest(f'{where}: "task" must be an adapter name or null')
    try:
        return TaskRow(validate_name(task), text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from error
