"""Rows to train an adapter on: a prompt and its answer (dlp_core.text.rows)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dlp_core.errors import InvalidRequest
from dlp_core.text import rows as shapes
from dlp_core.text.chat import Message

_HELD_BACK, _MOST_HELD_BACK = 0.1, 64


@dataclass(frozen=True, slots=True)
class Row:
    """One example: a user's message, or a conversation that ends before the answer, and the exact expected answer."""

    input: str | tuple[Message, ...]
    output: str

    @property
    def turns(self) -> tuple[Message, ...]:
        return (Message("user", self.input),) if isinstance(self.input, str) else self.input


def read_rows(path: Path, *, task: str | None = None, joint: bool = False) -> list[Row]:
    """Read the rows to train an adapter on: those of `task`, or all rows of the file.

    Raises InvalidRequest, naming file and line, for what dlp_core.text.rows refuses, if a row lacks its prompt or its
    answer, or if no row belongs to `task`. One adapter learns one task: a file with several is refused unless `task`
    names one of them or `joint` allows an adapter for all of them.
    """
    rows: list[Row] = []
    tasks: set[str] = set()
    for row in shapes.read_rows(path):
        example = Row(*row.answered())
        tasks.add(str(row.task))
        if task in (None, row.task):
            rows.append(example)
    if not rows:
        raise InvalidRequest(f"{path}: holds no rows of task {task!r}; its tasks are {', '.join(sorted(tasks))}")
    if len(tasks) > 1 and task is None and not joint:
        raise InvalidRequest(
            f"{path}: holds the tasks {', '.join(sorted(tasks))}; an adapter learns one task: choose one with --task, "
            "or train on all with --joint"
        )
    return rows


def hold_back(rows: Sequence[Row], count: int | None, rng: Random) -> tuple[list[Row], list[Row]]:
    """Shuffled training rows, and `count` others that are held back for validation; None: a tenth, at most 64.

    Raises InvalidRequest unless at least half of the rows are left to train on.
    """
    if count is None:
        count = max(1, min(_MOST_HELD_BACK, round(_HELD_BACK * len(rows))))
    if len(rows) < 2 * count:
        raise InvalidRequest(
            f"{len(rows)} rows are too few to hold out {count} for validation; provide at least {2 * count}"
        )
    shuffled = list(rows)
    rng.shuffle(shuffled)
    return shuffled[count:], shuffled[:count]
