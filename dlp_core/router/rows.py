"""Rows to train and evaluate a router: prompts (dlp_core.text.rows), each with the adapter it belongs to.

`"task": null` marks a background row: a prompt that fits no adapter. A row with `"benefit": {"labels": {...}}`, as `dlp
router label` writes, names several adapters at once, each with its probability; what is left is that none fits. Its
task then says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlp_core.adapter.names import validate_name
from dlp_core.errors import InvalidRequest
from dlp_core.text.rows import Row, read_rows

BENEFIT = "benefit"
"""The key of what was measured of a row; its "labels" are what a router learns from it."""

_ROUNDING = 1e-3
"""Labels may sum to so much more than 1."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One prompt and the adapter it belongs to, or None if it fits no adapter."""

    task: str | None
    input: str
    weight: int = 1
    """How often a training is shown it, where it does not hold it back."""
    labels: tuple[tuple[str, float], ...] | None = None
    """The probability that each adapter should serve it, by name; the rest is that none should. None for a row that
    belongs to its task alone."""

    @classmethod
    def labelled(cls, text: str, labels: Mapping[str, float], weight: int = 1) -> TaskRow:
        """A row with soft labels. Its task is the likeliest adapter, or None if it is more likely that none fits."""
        ordered = tuple(sorted(labels.items()))
        fits = sum(labels.values()) >= _SOME_FITS and max(labels.values(), default=0.0) > 0
        best = max(ordered, key=lambda label: label[1])[0] if fits else None
        return cls(best, text, weight, ordered)


def read_task_rows(paths: Iterable[Path]) -> list[TaskRow]:
    """Read all rows of the files, in order. Of a conversation, the text that a server would route first.

    Raises InvalidRequest, naming file and line, for what `read_rows` refuses, and for a row without "task" (a valid
    adapter name or null) or without a prompt.
    """
    return [_task_row(row) for path in paths for row in read_rows(path)]


def adapters_of(rows: Iterable[TaskRow]) -> set[str]:
    """The adapters that rows say anything about: their tasks, and all that their soft labels name, at whatever
    probability."""
    rows = list(rows)
    tasks = {row.task for row in rows if row.task is not None}
    return tasks | {name for row in rows for name, _ in row.labels or ()}


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


_SOME_FITS = 0.5


def _task_row(row: Row) -> TaskRow:
    text = _prompt(row)
    if row.record.get(BENEFIT) is not None:
        return TaskRow.labelled(text, _labels(row.record[BENEFIT], row.where))
    if not row.has_task:
        raise InvalidRequest(
            f'{row.where}: "task" is missing; add an adapter name, or null for a prompt that fits none'
        )
    return TaskRow(row.task, text)


def _labels(benefit: Any, where: str) -> dict[str, float]:
    labels = benefit.get("labels") if isinstance(benefit, Mapping) else None
    if not isinstance(labels, Mapping):
        raise InvalidRequest(
            f'{where}: "{BENEFIT}" must be {{"labels": {{"<adapter>": probability, ...}}}}, as dlp router label writes'
        )
    for name, value in labels.items():
        try:
            validate_name(name)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error.message}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InvalidRequest(f"{where}: the label of {name!r} must be a probability, not {value!r}")
    if (total := math.fsum(labels.values())) > 1 + _ROUNDING:
        raise InvalidRequest(f"{where}: the labels sum to {total:.3f}; they are probabilities, at most 1 together")
    return {name: float(value) for name, value in labels.items()}


def _prompt(row: Row) -> str:
    text = row.routing_texts[0]
    if not text.strip():
        raise InvalidRequest(f"{row.where}: the prompt is empty; add it or remove the row")
    return text
