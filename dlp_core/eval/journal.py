"""Answers that were computed once, in a file of JSON lines: a killed evaluation goes on where it was.

A line that was cut off by the kill is ignored. Keys say everything an answer depends on, so one journal may serve
several banks: an answer under adapters that did not change is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlp_core.store.disk import disk_errors


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one job."""

    text: str
    tokens: int
    mixes: int
    """Different mixes of prompt and completion: more than one by sentence only."""
    likelihoods: dict[str, float] | None = None
    """Of each option's letter, as natural logarithms; None where they were not asked for."""


class Journal:
    """Answers by key. Appends to `path` as they come, or keeps them in memory alone."""

    def __init__(self, path: Path | None) -> None:
        """Raises InvalidRequest if the file cannot be read or written; as `add`, DiskFull or LocalDiskError if the disk
        fails."""
        self._answers: dict[str, Answer] = {}
        self._path = path
        self._file = None
        if path is None:
            return
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = 0
            if path.exists():
                for line, end in _lines(path):
                    with suppress(ValueError, TypeError, KeyError):  # of another version: it is done again
                        record: dict[str, Any] = json.loads(line)
                        key = record.pop("key")
                        self._answers[key] = Answer(**record)
                    whole = end
            self._file = path.open("a", encoding="utf-8")
            self._file.truncate(whole)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        if self._file is not None:
            with self._disk_errors():
                self._file.write(json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n")
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._disk_errors():
                self._file.close()

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(f"{self._path}: cannot be used", action="choose another --out")


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each whole line, and where it ends in the file."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                yield line, end
