"""Feedback and requests on their way to the bank's store and back. Nothing here makes a generation wait or fail.

Records are written in batches by threads (dlp_core/store/batches.py), and read and deleted on threads too. Before
something is read, this replica writes what waits in it; what waits in others is seen a little later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from datetime import date
from typing import Literal, TypeVar

from deployments.args import FeedbackArgs
from dlp_core.bank.feedback import Feedback, KeptRequest
from dlp_core.bank.kept import FEEDBACK, REQUESTS, KeptRecord, expire, read, today
from dlp_core.errors import DLPError, StoreUnavailable
from dlp_core.store.batches import BatchWriter, Counts
from dlp_core.store.protocol import AdapterStore

log = logging.getLogger("ray.serve")

Kind = Literal["feedback", "requests"]
R = TypeVar("R", bound=KeptRecord)

FIRST_WRITE_S = 10.0
"""How long the first feedback of a replica waits until it is written: a store that takes none is found out by it."""

FLUSH_S = 5.0
"""How long a reader waits for what this replica has not written yet."""

CLOSE_S = 20.0
"""How long a replica that ends tries to write what waits."""

EXPIRY_S = 6 * 3600.0
"""Between two looks for records that are too old."""


class Keeper:
    """Use from one event loop; `close` at its end."""

    def __init__(self, store: AdapterStore, settings: FeedbackArgs, *, prompts: bool, replica: str) -> None:
        """`prompts`: whether requests are kept too. `replica` names the files of this process, and no other's."""
        self._store = store
        self._settings = settings
        self.keeps_requests = prompts

        def writer(prefix: str) -> BatchWriter:
            return BatchWriter(
                store,
                prefix,
                name=replica,
                batch=settings.batch,
                delay_s=settings.delay_s,
                most_waiting=settings.most_waiting,
            )

        self._writers: dict[Kind, BatchWriter] = {"feedback": writer(FEEDBACK), "requests": writer(REQUESTS)}
        self._reading = asyncio.Lock()  # a day may be large: one at a time
        self._day = today()
        self._kept_today = 0

    @property
    def counts(self) -> Mapping[Kind, Counts]:
        return {kind: writer.counts for kind, writer in self._writers.items()}

    async def give(self, feedback: Feedback) -> None:
        """Take feedback; the first one of this replica is written before this returns.

        Raises StoreUnavailable if the store does not take it, or too much waits for a store that fails.
        """
        writer = self._writers["feedback"]
        if not writer.add(feedback.line()):
            reason = "" if writer.failure is None else f": {writer.failure.message}"
            raise StoreUnavailable(f"too much feedback waits to be written{reason}; retry later", retry_after=60.0)
        if not writer.counts.written and not await asyncio.to_thread(writer.flush, FIRST_WRITE_S):
            reason = "it does not answer" if writer.failure is None else writer.failure.message
            raise StoreUnavailable(f"feedback cannot be written to the bank's store: {reason}", retry_after=60.0)

    def keep(self, request: KeptRequest) -> None:
        """Keep a request, unless it is not in the share or beyond the number of a day."""
        if random.random() >= self._settings.request_share:
            return
        if self._day != today():
            self._day, self._kept_today = today(), 0
        if self._kept_today >= self._settings.requests_per_day:
            return
        self._kept_today += self._writers["requests"].add(request.line())

    async def feedback(self, *, since: date, until: date | None = None) -> list[Feedback]:
        """What was given on these days, the oldest first. Raises StoreUnavailable."""
        return await self._read("feedback", FEEDBACK, Feedback, since, until)

    async def requests(self, *, since: date, until: date | None = None) -> list[KeptRequest]:
        """What was routed on these days, the oldest first. Raises StoreUnavailable."""
        return await self._read("requests", REQUESTS, KeptRequest, since, until)

    async def _read(self, kind: Kind, prefix: str, record: type[R], since: date, until: date | None) -> list[R]:
        writer = self._writers[kind]
        async with self._reading:
            if writer.counts.waiting:
                await asyncio.to_thread(writer.flush, FLUSH_S)
            return await asyncio.to_thread(read, self._store, prefix, record, since=since, until=until)

    async def expire(self) -> None:
        """Delete what is too old, now and several times a day. Never returns."""
        while True:
            try:
                files = await asyncio.to_thread(expire, self._store, days=self._settings.retention_days)
                if files:
                    log.info("deleted %d files of feedback and requests past their retention", files)
            except DLPError as error:
                log.warning("old feedback and requests are not deleted: %s", error.message)
            await asyncio.sleep(EXPIRY_S)

    async def close(self) -> None:
        """Write what waits."""
        await asyncio.gather(*(asyncio.to_thread(writer.close, CLOSE_S) for writer in self._writers.values()))
