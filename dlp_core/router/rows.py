"""Rows to train and evaluate a router: prompts (dlp_core.text.rows), each with the adapter it belongs to.

`"task": null` marks a background row: a prompt that fits no adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlp_core.errors import InvalidRequest
from dlp_core.text.rows import Row, read_rows


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One prompt and the adapter it belongs to, or None if it fits no adapter."""

    task: str | None
    input: str
    weight: int = 1
    """How often a training is shown it, where it does not hold it back."""


def read_task_rows(paths: Iterable[Path]) -> list[TaskRow]:
    """Read all rows of the files, in order. Of a conversation, the text that a server would route first.

    Raises InvalidRequest, naming file and line, for what `read_rows` refuses, and for a row without "task" (a valid
    adapter name or null) or without a prompt.
    """
    return [_task_row(row) for path in paths for row in read_rows(path)]


def read_routing_texts(path: Path) -> list[tuple[str, ...]]:
    """Of every row, the texts that a server would route it by (Router.route_first); they may be empty. Raises
    InvalidRequest like `read_rows`."""
    return [row.routing_texts for row in read_rows(path)]


def read_examples(path: Path, task: str) -> list[str]:
    """Read the prompt of every row; a row may omit "task". Raises InvalidRequest like `read_task_rows`, and for a row
    of another task."""
    examples = []
    for row in read_rows(path):
        if row.has_task and row.task != task:
            raise InvalidRequest(f"{row.where}: a row of task {row.task!r} is not an example of {task!r}; remove it")
        examples.append(_prompt(row))
    return examples


def _task_row(row: Row) -> TaskRow:
    text = _prompt(row)
    if not row.has_task:
        raise InvalidRequest(
            f'{row.where}: "task" is missing; add an adapter name, or null for a prompt that fits none'
        )
    return TaskRow(row.task, text)


def _prompt(row: Row) -> str:
    text = row.routing_texts[0]
    if not text.strip():
        raise InvalidRequest(f"{row.where}: the prompt is empty; add it or remove the row")
    return text
