"""Data rows: JSON lines `{"task": name | null, "input": text, "output": text}`, plain or `.gz`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlp_core.errors import InvalidRequest
from dlp_core.store.jsonl import read_objects


@dataclass(frozen=True, slots=True)
class Row:
    """One example: what a user types and the exact answer wanted."""

    input: str
    output: str


def read_rows(path: Path, *, task: str | None = None, joint: bool = False) -> list[Row]:
    """Reads the rows an adapter is trained on: those of `task`, or all of the file.

    Raises InvalidRequest, naming file and line, for a file that `read_objects` refuses, one whose rows lack `input` or
    `output`, and one without a row of `task`. One adapter is one task: a file of several is refused, too, unless one of
    them is named or the adapter shall be their `joint` one.
    """
    rows: list[Row] = []
    tasks: set[str] = set()
    for where, record in read_objects(path):
        for field in ("input", "output"):
            if not isinstance(record.get(field), str) or not record[field].strip():
                raise InvalidRequest(f"{where}: {field!r} must be a text that is not empty")
        tasks.add(str(record.get("task")))
        if task in (None, record.get("task")):
            rows.append(Row(record["input"], record["output"]))
    if not rows:
        raise InvalidRequest(f"{path}: holds no rows of {task!r}; its tasks are {', '.join(sorted(tasks))}")
    if len(tasks) > 1 and task is None and not joint:
        raise InvalidRequest(
            f"{path}: holds the tasks {', '.join(sorted(tasks))}; one adapter is one task: name it with --task, or say "
            "--joint"
        )
    return rows
