"""Rows to train and evaluate a router: JSON lines `{"task": adapter name or null, "input": text}`, plain or `.gz`.

Other keys are ignored. `"task": null` marks a background row: a prompt that fits no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dlp_core.adapter.names import validate_name
from dlp_core.errors import InvalidRequest
from dlp_core.store.jsonl import read_objects

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One prompt and the adapter it belongs to, or None if it fits no adapter."""

    task: str | None
    input: str


def read_task_rows(paths: Iterable[Path]) -> list[TaskRow]:
    """Read all rows of the files, in order.

    Raises InvalidRequest, naming file and line, for a file that `read_objects` refuses and for a row without "task" (a
    valid adapter name or null) or without text in "input".
    """
    return [row for path in paths for row in _read(path, _task_row)]


def read_texts(path: Path) -> list[str]:
    """Read the "input" of every row; it may be empty. Raises InvalidRequest like `read_task_rows`."""
    return _read(path, _text)


def read_examples(path: Path, task: str) -> list[str]:
    """Read the "input" of every row; a row may omit "task". Raises InvalidRequest like `read_task_rows`, and for a row
    of another task."""

    def example(record: dict[str, Any], where: str) -> str:
        row = _task_row({"task": task} | record, where)
        if row.task != task:
            raise InvalidRequest(f"{where}: a row of task {row.task!r} is not an example of {task!r}; remove it")
        return row.input

    return _read(path, example)


def _read(path: Path, parse: Callable[[dict[str, Any], str], Row]) -> list[Row]:
    return [parse(record, where) for where, record in read_objects(path)]


def _text(record: dict[str, Any], where: str) -> str:
    text = record.get("input")
    if not isinstance(text, str):
        raise InvalidRequest(f'{where}: a row must be an object with text in "input"')
    return text


def _task_row(record: dict[str, Any], where: str) -> TaskRow:
    text = _text(record, where)
    if not text.strip():
        raise InvalidRequest(f'{where}: "input" is empty; add the prompt or remove the row')
    if "task" not in record:
        raise InvalidRequest(f'{where}: "task" is missing; add an adapter name, or null for a prompt that fits none')
    task = record["task"]
    if task is None:
        return TaskRow(None, text)
    if not isinstance(task, str):
        raise InvalidRequest(f'{where}: "task" must be an adapter name or null')
    try:
        return TaskRow(validate_name(task), text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from error
