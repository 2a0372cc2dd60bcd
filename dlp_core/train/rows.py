"""Data rows: JSON lines `{"task": name | null, "input": text, "output": text}`, plain or `.gz`."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from dlp_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Row:
    """One example: what a user types and the exact answer wanted."""

    input: str
    output: str


def read_rows(path: Path, *, task: str | None = None, joint: bool = False) -> list[Row]:
    """Reads the rows an adapter is trained on: those of `task`, or all of the file.

    Raises InvalidRequest, naming file and line, for a file that is missing, empty, no JSON lines, lacks
    `input` or `output`, or has no row of `task`. One adapter is one task: a file of several is refused, too, unless one
    of them is named or the adapter shall be their `joint` one.
    """
    rows: list[Row] = []
    tasks: set[str] = set()
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InvalidRequest(f"{path}:{number}: a row must be a JSON object")
                for field in ("input", "output"):
                    if not isinstance(record.get(field), str) or not record[field].strip():
                        raise InvalidRequest(f"{path}:{number}: {field!r} must be a text that is not empty")
                tasks.add(str(record.get("task")))
                if task in (None, record.get("task")):
                    rows.append(Row(record["input"], record["output"]))
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror or error})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not JSON lines ({error})") from error
    if not tasks:
        raise InvalidRequest(f"{path}: holds no rows")
    if not rows:
        raise InvalidRequest(f"{path}: holds no rows of {task!r}; its tasks are {', '.join(sorted(tasks))}")
    if len(tasks) > 1 and task is None and not joint:
        raise InvalidRequest(
            f"{path}: holds the tasks {', '.join(sorted(tasks))}; one adapter is one task: name it with --task, or say "
            "--joint"
        )
    return rows
