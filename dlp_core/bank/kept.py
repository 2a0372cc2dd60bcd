"""Where a bank's store keeps what its servers were told and asked, and for how long.

    feedback/<day>/<replica>-<n>.jsonl      what people said about answers: dlp_core/bank/feedback.py
    requests/<day>/<replica>-<n>.jsonl      what was routed, where prompts may be kept
    improve/<run>/rows.jsonl                what the router was trained with of it: dlp_core/improve/rows.py

Days are in UTC. dlp_core/store/batches.py writes the files; neither publishing nor garbage collection touches them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dlp_core.errors import Conflict, InvalidRequest, NotFound
from dlp_core.store.documents import parse_json
from dlp_core.store.protocol import AdapterStore, ObjectInfo
from dlp_core.store.transfers import Progress, silent

log = logging.getLogger(__name__)

IMPROVE = "improve/"
FEEDBACK = "feedback/"
REQUESTS = "requests/"

_READERS = 8
_ATTEMPTS = 5


class KeptRecord(BaseModel):
    """One line. A field that a newer server has written is ignored by an older one."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str
    created: float
    """Seconds since 1970."""
    key: str
    """The name of the API key of whoever sent it."""

    def line(self) -> str:
        """The record as a line of its file: only the fields that were given."""
        return self.model_dump_json(exclude_unset=True)


R = TypeVar("R", bound=KeptRecord)


@dataclass(frozen=True, slots=True)
class Purged:
    """Outcome of `purge`: what was deleted, or would be."""

    records: int
    files: int
    """That lost records; those without any left are gone."""


def today() -> date:
    return datetime.now(UTC).date()


def parse_day(text: str) -> date:
    """A day as people write it. Raises InvalidRequest."""
    day = _as_day(text)
    if day is not None:
        return day
    raise InvalidRequest(f"{text[:40]!r} is not a day; write it as {today().isoformat()}", param="day")


def read(
    store: AdapterStore,
    prefix: str,
    kind: type[R],
    *,
    since: date | None = None,
    until: date | None = None,
    ids: Container[str] | None = None,
) -> list[R]:
    """The records under a prefix, the oldest first, each once; of the days from `since` to `until`, both included, and
    only those of the `ids`, if given.

    What cannot be read as a record is skipped and logged. Raises StoreUnavailable.
    """
    if since is not None and since == until:
        listed = list(store.list(f"{prefix}{since.isoformat()}/"))
    else:
        listed = [
            info for info, day in _files(store, prefix) if (not since or day >= since) and (not until or day <= until)
        ]
    records: dict[str, R] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for info, data in zip(listed, pool.map(lambda info: _get(store, info.key), listed), strict=True):
            for record in parse(kind, data, f"{info.key} in {store.uri}"):
                if ids is None or record.id in ids:
                    records.setdefault(record.id, record)
    return sorted(records.values(), key=lambda record: record.created)


def expire(store: AdapterStore, *, days: int) -> int:
    """Delete what is older than this many days; returns how many files went. Raises StoreUnavailable."""
    first = today() - timedelta(days=days)
    old = [info.key for prefix in (FEEDBACK, REQUESTS) for info, day in _files(store, prefix) if day < first]
    for key in old:
        store.delete(key)
    return len(old)


def purge(
    store: AdapterStore,
    *,
    before: date | None = None,
    key: str | None = None,
    id: str | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Purged:
    """Delete the records of days before `before`, of the API key `key`, and of the request or feedback `id`; where
    several are given, those that all of them mean. `progress` counts files.

    Files are rewritten one by one, each in one step. Raises Conflict if a file keeps changing, StoreUnavailable.
    """

    def meant(record: dict[str, Any]) -> bool:
        return (key is None or key in (record.get("key"), record.get("request_key"))) and (
            id is None or id in (record.get("id"), record.get("request_id"))
        )

    def old(record: dict[str, Any]) -> bool:
        created = record.get("created")
        return before is None or (isinstance(created, float) and datetime.fromtimestamp(created, UTC).date() < before)

    files = [
        info for prefix in (FEEDBACK, REQUESTS) for info, day in _files(store, prefix) if not before or day < before
    ]
    learnt = [info for info in store.list(IMPROVE) if info.key.endswith("/rows.jsonl")]
    records = touched = 0
    for done, info in enumerate([*files, *learnt], 1):
        chosen = meant if done <= len(files) else lambda record: old(record) and meant(record)
        gone = _rewrite(store, info.key, chosen, dry_run=dry_run)
        records += gone
        touched += gone > 0
        progress(done, len(files) + len(learnt))
    return Purged(records, touched)


def _rewrite(store: AdapterStore, key: str, meant: Callable[[dict[str, Any]], bool], *, dry_run: bool) -> int:
    """Take the records that are meant out of a file; how many there were."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            stored = store.get(key)
        except NotFound:
            return 0
        lines = stored.data.splitlines(keepends=True)
        kept = [line for line in lines if not _matches(line, meant)]
        gone = len(lines) - len(kept)
        if not gone or dry_run:
            return gone
        try:
            # even if nothing is left: its writer finds it changed then, and begins another
            store.put(key, b"".join(kept), if_match=stored.etag)
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
            continue
        if not kept:
            store.delete(key)
        return gone
    raise AssertionError("unreachable")


def _matches(line: bytes, meant: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        record = parse_json(line.decode())
    except ValueError:
        return False
    return isinstance(record, dict) and meant(record)


def _files(store: AdapterStore, prefix: str) -> Iterator[tuple[ObjectInfo, date]]:
    """The files under a prefix with their days; what is not in a day's folder is not ours."""
    for info in store.list(prefix):
        day = _as_day(info.key.removeprefix(prefix).partition("/")[0])
        if day is not None:
            yield info, day


def _as_day(text: str) -> date | None:
    with suppress(ValueError):
        day = date.fromisoformat(text)
        return day if day.isoformat() == text else None  # not as 20261127 or 2026-W48-5
    return None


def _get(store: AdapterStore, key: str) -> bytes:
    try:
        return store.get(key).data
    except NotFound:  # it was purged meanwhile
        return b""


def parse(kind: type[R], data: bytes, where: str) -> Iterator[R]:
    """The records in a file. What is none is skipped and logged, with `where` it is."""
    skipped = 0
    for line in data.splitlines():
        try:
            yield kind.model_validate_json(line)
        except ValidationError:
            skipped += 1
    if skipped:
        log.warning("%s: %d lines are not records of this kind and were skipped", where, skipped)
