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


def read_rows(path: Path) -> list[Row]:
    """Reads the rows an adapter is trained on.

    Raises InvalidRequest, naming file and line, for a file that is missing, empty, no JSON lines, lacks
    `input` or `output`, or holds more than one task: one adapter is one task.
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
                rows.append(Row(record["input"], record["output"]))
                tasks.add(str(record.get("task")))
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror or error})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not JSON lines ({error})") from error
    if not rows:
        raise InvalidRequest(f"{path}: holds no rows")
    if len(tasks) > 1:
        raise InvalidRequest(
            f"{path}: holds the tasks {', '.join(sorted(tasks))}; give one adapter the rows of one task"
        )
    return rows
