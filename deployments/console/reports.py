"""Reports of `dlp eval` in a folder: results of banks, and what the gate said of them.

A file of results is what `dlp eval --out` writes and what the bank's store keeps under evals/; the gate's verdict is
the output of `dlp eval gate --json`. Other files are passed over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlp_core.eval.history import judged
from dlp_core.eval.results import Results
from dlp_core.store.records import first_problem

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
        found = [
            (str(path.relative_to(self._folder)), self._file(path))
            for path in sorted(self._folder.rglob("*.json"))[:MAX_FILES]
        ]
        return {
            "folder": str(self._folder),
            "results": judged([(path, one) for path, one in found if isinstance(one, Results)]),
            "gates": [{**one, "path": path} for path, one in found if isinstance(one, dict)],
            "unreadable": [{"path": path, "reason": one} for path, one in found if isinstance(one, str)],
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
