"""Writes records to a store in batches, from a thread of its own: whoever adds one never waits for the store.

    <prefix><day>/<name>-<n>.jsonl      JSON lines; the day is that of `add`, in UTC

A file grows by being written again, up to FILE_BYTES; then the next one begins. Each write is conditional on the last
one, so a file that somebody else has changed meanwhile (to delete records from it) is left to them. A write whose
answer was lost may be repeated in another file: readers tell records by their ids.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import itemgetter

from dlp_core.errors import Conflict, DLPError, NotFound
from dlp_core.store.protocol import AdapterStore

log = logging.getLogger(__name__)

FILE_BYTES = 256 * 1024
"""A file of at least this size is not written again."""

RETRY_S = (1.0, 60.0)
"""The first and the longest wait after a failed write; each is twice the one before."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Records since the writer began. Those that wait are in memory only."""

    written: int
    dropped: int
    waiting: int


@dataclass(slots=True)
class _File:
    day: str
    key: str
    data: bytes = b""
    etag: str | None = None


class BatchWriter:
    """Records on their way to a store.

    They are written when `batch` of them wait or the oldest has waited for `delay_s`. While the store fails, up to
    `most_waiting` wait and the writer retries; what comes beyond is dropped and counted. A process that is killed loses
    what waits, never more than `most_waiting`; `close` writes it. Thread-safe.
    """

    def __init__(
        self, store: AdapterStore, prefix: str, *, name: str, batch: int, delay_s: float, most_waiting: int
    ) -> None:
        """`name` is this writer's alone: no other process may write files of that name. `prefix` ends in '/'."""
        self._store = store
        self._prefix = prefix
        self._name = name
        self._batch = batch
        self._delay_s = delay_s
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting: deque[tuple[str, bytes]] = deque()  # day and line; the oldest first, until it is written
        self._file: _File | None = None
        self._files = 0
        self._due = 0.0  # time.monotonic of the next write, if anything waits
        self._asked = False  # somebody waits for what waits now
        self._close_by: float | None = None
        self._written = self._dropped = self._failures = 0
        self._failure: DLPError | None = None

    @property
    def counts(self) -> Counts:
        with self._changed:
            return Counts(self._written, self._dropped, len(self._waiting))

    @property
    def failure(self) -> DLPError | None:
        """Why the last write failed; None if it did not."""
        return self._failure

    def add(self, record: str) -> bool:
        """Take a record, one line of JSON. False if it is dropped: too many wait, or the writer is closed."""
        line = f"{record}\n".encode()
        day = datetime.now(UTC).date().isoformat()
        with self._changed:
            if self._close_by is not None or len(self._waiting) >= self._most_waiting:
                self._dropped += 1
                if self._dropped == 1 or self._dropped % 1000 == 0:
                    log.error("records of %s are dropped, %d so far: too many wait", self._prefix, self._dropped)
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"writes {self._prefix}", daemon=True)
                self._thread.start()
            if not self._waiting:
                self._due = time.monotonic() + self._delay_s
            self._waiting.append((day, line))
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Write what waits now. False if that failed, or takes longer. Blocks."""
        with self._changed:
            goal = self._written + len(self._waiting)
            failures = self._failures
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= goal or self._failures > failures, timeout_s)
            return self._written >= goal

    def close(self, timeout_s: float) -> bool:
        """Write what waits, trying again until `timeout_s` is over, and end. False, with a line in the log, if records
        are lost. Blocks."""
        with self._changed:
            self._close_by = time.monotonic() + timeout_s
            self._asked = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            lost = len(self._waiting)
        if lost:
            log.error("records of %s are lost, %d of them: %s", self._prefix, lost, self._failure or "no time left")
        return not lost

    def _run(self) -> None:
        wait_s, most_s = RETRY_S
        while self._wait():
            try:
                self._write_waiting()
            except Exception as error:
                failure = error if isinstance(error, DLPError) else DLPError(f"{type(error).__name__}: {error}")
                with self._changed:
                    if self._failure is None:
                        waiting = len(self._waiting)
                        log.warning("records of %s wait in memory, %d now: %s", self._prefix, waiting, failure.message)
                        wait_s = RETRY_S[0]
                    self._failure = failure
                    self._failures += 1
                    self._due = time.monotonic() + (wait_s if self._close_by is None else RETRY_S[0])
                    self._changed.notify_all()
                wait_s = min(2 * wait_s, most_s)
            else:
                with self._changed:
                    if self._failure is not None:
                        log.info("records of %s are written again; %d were dropped", self._prefix, self._dropped)
                    self._failure = None
                    self._due = time.monotonic() + self._delay_s  # for what came meanwhile

    def _wait(self) -> bool:
        """Wait until something is to be written; False at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                closing = self._close_by is not None
                if closing and (not self._waiting or now >= (self._close_by or 0.0)):
                    return False
                if not self._waiting:
                    self._asked = False
                    self._changed.wait()
                    continue
                healthy = self._failure is None
                full = len(self._waiting) >= self._batch
                if now >= self._due or self._asked or (healthy and (full or closing)):
                    return True
                self._changed.wait(min(self._due, self._close_by or self._due) - now)

    def _write_waiting(self) -> None:
        with self._changed:
            left = len(self._waiting)
            self._asked = False
        while left:
            with self._changed:
                day, entries = next(groupby(islice(self._waiting, left), itemgetter(0)))
                lines = [line for _, line in entries]
            self._write(day, b"".join(lines))
            left -= len(lines)
            with self._changed:
                for _ in lines:
                    self._waiting.popleft()
                self._written += len(lines)
                self._changed.notify_all()

    def _write(self, day: str, data: bytes) -> None:
        file = self._file
        if file is None or file.day != day or len(file.data) >= FILE_BYTES:
            file = self._next_file(day)
        try:
            self._put(file, data)
        except (Conflict, NotFound):
            self._put(self._next_file(day), data)

    def _put(self, file: _File, data: bytes) -> None:
        content = file.data + data
        try:
            etag = self._store.put(file.key, content, if_none_match=file.etag is None, if_match=file.etag)
        except Conflict:
            stored = self._store.get(file.key)
            if stored.data != content:  # else this was our own write, whose answer was lost
                raise
            etag = stored.etag
        file.data, file.etag = content, etag

    def _next_file(self, day: str) -> _File:
        self._files += 1
        self._file = _File(day, f"{self._prefix}{day}/{self._name}-{self._files}.jsonl")
        return self._file
