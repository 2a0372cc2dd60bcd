"""Reports of `dlp eval` in a folder: results of banks, and what the gate said of them.

A file of results is what `dlp eval --out` writes and what the bank's store keeps under evals/; the gate's verdict is
the output of `dlp eval gate --json`. Other files are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlp_core.errors import InvalidRequest
from dlp_core.eval.results import Results, compare_banks
from dlp_core.store.records import first_problem

SERVED = "top-p=0.9"
"""The arm that a server runs, by which banks are compared."""
MAX_DROP = 1.0
"""Points that a task may lose: the gate's own default."""
MAX_FILES = 500

_GATE = frozenset({"passed", "worse", "bank", "baseline", "tasks"})


class Reports:
    """What a folder has, read again where a file changed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int], Results | dict[str, Any] | str | None]] = {}

    def json(self) -> dict[str, Any]:
        """Results, oldest first, each with its verdict against the bank before it on the same suite; the gate's own
        verdicts; and the files that cannot be read. Reads files: call it on a thread."""
        if self._folder is None:
            return {"folder": None, "results": [], "gates": [], "unreadable": []}
        found = [(path, self._file(path)) for path in sorted(self._folder.rglob("*.json"))[:MAX_FILES]]
        results = sorted(
            ((path, one) for path, one in found if isinstance(one, Results)), key=lambda pair: pair[1].created
        )
        ordered = [one for _, one in results]
        return {
            "folder": str(self._folder),
            "results": [
                result_json(one, path.relative_to(self._folder)) | {"verdict": verdict(one, ordered[:number])}
                for number, (path, one) in enumerate(results)
            ],
            "gates": [
                {**one, "path": str(path.relative_to(self._folder))} for path, one in found if isinstance(one, dict)
            ],
            "unreadable": [
                {"path": str(path.relative_to(self._folder)), "reason": one}
                for path, one in found
                if isinstance(one, str)
            ],
        }

    def _file(self, path: Path) -> Results | dict[str, Any] | str | None:
        try:
            stat = path.stat()
            seen = stat.st_mtime_ns, stat.st_size
            if path in self._read and self._read[path][0] == seen:
                return self._read[path][1]
            parsed = parse(path.read_bytes())
        except OSError as error:
            return error.strerror or "it cannot be read"
        if len(self._read) > MAX_FILES:
            self._read.clear()
        self._read[path] = seen, parsed
        return parsed


def parse(content: bytes) -> Results | dict[str, Any] | str | None:
    """Results, a verdict of the gate, the reason why something that looks like results is none, or None for another
    file."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    if document.keys() >= _GATE:
        return document
    if not document.keys() >= {"suite", "bank", "arms"}:
        return None
    try:
        return Results.model_validate_json(
            json.dumps({"rows": {}, **document})
        )  # `dlp eval --json` leaves the rows out
    except ValidationError as error:
        return f"not the results of an evaluation ({first_problem(error)})"


def result_json(results: Results, path: Path) -> dict[str, Any]:
    """Results without their rows."""
    return {"path": str(path), **results.model_dump(mode="json", exclude={"rows"})}


def verdict(new: Results, earlier: Sequence[Results]) -> dict[str, Any] | None:
    """How the gate would judge a bank by its rows, against the newest earlier results of another bank on the same
    suite. None if there are none."""
    for old in reversed(earlier):
        if old.suite.digest != new.suite.digest or old.bank.digest == new.bank.digest:
            continue
        try:
            difference = compare_banks(new, old, SERVED)
        except InvalidRequest:
            continue
        worse = difference.worse(MAX_DROP)
        dropped = difference.overall.mean < -MAX_DROP and difference.overall.high < 0
        return {
            "baseline": old.bank.version,
            "arm": SERVED,
            "passed": not (worse or dropped),
            "worse": worse,
            "better": difference.better,
            "mean": difference.overall.model_dump(),
            "tasks": {task: interval.model_dump() for task, interval in difference.tasks.items()},
        }
    return None
