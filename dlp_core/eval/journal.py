"""Computed results in a JSON-lines file: a killed evaluation resumes where it stopped.

A line cut off by the kill is ignored. A key covers everything its result depends on, so several banks can share one
journal: an answer under adapters that did not change is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dlp_core.store.disk import disk_errors


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one job."""

    text: str
    tokens: int
    mixes: int
    """Number of distinct mixes over prompt and completion."""
    likelihoods: dict[str, float] | None = None
    """Natural log-likelihood of each option, by its letter; None if the job had no options."""
    prompt_tokens: int | None = None
    """None, as `seconds`, in journals of versions that did not measure them."""
    seconds: float | None = None
    """From the question to the last token, beside the other requests of the batch; without the wait to be started."""


Record = TypeVar("Record")


class RecordJournal(Generic[Record]):
    """Records by key, of one dataclass `kind`. Appends each to `path`; for None, keeps them in memory only."""

    def __init__(self, path: Path | None, kind: type[Record]) -> None:
        """Raises InvalidRequest if the file cannot be read or written; as `add`, DiskFull or LocalDiskError if the disk
        fails."""
        self._records: dict[str, Record] = {}
        self._path = path
        self._file = None
        if path is None:
            return
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            valid_bytes = 0
            if path.exists():
                for line, end in _lines(path):
                    with suppress(ValueError, TypeError, KeyError):  # written by another version: computed again
                        record: dict[str, Any] = json.loads(line)
                        key = record.pop("key")
                        self._records[key] = kind(**record)
                    valid_bytes = end
            self._file = path.open("a", encoding="utf-8")
            self._file.truncate(valid_bytes)

    def get(self, key: str) -> Record | None:
        return self._records.get(key)

    def add(self, key: str, record: Record) -> None:
        self._records[key] = record
        if self._file is not None:
            with self._disk_errors():
                self._file.write(json.dumps({"key": key, **asdict(record)}, ensure_ascii=False) + "\n")  # type: ignore[call-overload]
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._disk_errors():
                self._file.close()

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(f"{self._path}: cannot be used", action="choose another --out")


class Journal(RecordJournal[Answer]):
    """The answers of an evaluation."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, Answer)


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each complete line and the offset of its end in the file."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                yield line, end
