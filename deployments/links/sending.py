"""The backbone's side: what an answer's own call sends, and what waits for the link to its ingress replica.

    answer 0 ─┬─ first piece; last one, with all that waits ──> own call
              └─ between them ──┐
    answer 1 ─┬─ ... ───────────┼─────────────────────────────> own call
              └─ ... ───────────┴──> link: one message for all of them, every `interval_s` at most

An ingress replica opens its link, by `listen`, once it has more than one answer here. Until then an answer's pieces all
go by its own call. The link ends with the last of these answers. No more waits than the answers may have tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from deployments.links.parts import Listening, Part
from dlp_core.generation.messages import Finished, Piece


class Sender:
    """The answers of one backbone replica on their way to the ingress replicas. Use from one event loop."""

    def __init__(self, replica: str, interval_s: float) -> None:
        """`replica` is this one's id. A link sends at most one message every `interval_s`, and one for each step of the
        engine if steps take longer."""
        self._replica = replica
        self._interval_s = interval_s
        self._links: dict[str, Link] = {}

    @contextmanager
    def answer(self, request_id: str, ingress: str, *, stream: bool) -> Iterator[Outgoing]:
        """An answer to one ingress replica, while the block runs. Without `stream`, nothing of it is sent before its
        end."""
        if not stream:
            yield Outgoing(self._replica, request_id, None)
            return
        link = self._links.setdefault(ingress, Link(self._interval_s))
        outgoing = Outgoing(self._replica, request_id, link)
        link.enter(outgoing)
        try:
            yield outgoing
        finally:
            link.leave(outgoing)
            if link.idle:
                del self._links[ingress]

    async def listen(self, listening: Listening) -> AsyncGenerator[tuple[Part, ...], None]:
        """What the answers to an ingress replica send by its link, until none is left. Nothing if another replica is
        meant."""
        link = self._links.get(listening.ingress)
        if link is not None and listening.replica == self._replica:
            async with aclosing(link.messages()) as messages:
                async for parts in messages:
                    yield parts


class Outgoing:
    """One answer: the pieces that were not sent yet."""

    def __init__(self, replica: str, request_id: str, link: Link | None) -> None:
        self._replica = replica
        self._request_id = request_id
        self._link = link
        self._sent = 0
        self._waiting: list[Piece] = []

    def add(self, piece: Piece) -> Part | None:
        """What the answer's own call has to send now that there is one more piece; None if the link sends it."""
        self._waiting.append(piece)
        if isinstance(piece, Finished):
            return self.take()
        if self._link is None:
            return None
        if self._sent and self._link.wake():
            return None
        return self.take()

    def take(self) -> Part | None:
        """What was not sent yet, which now is; None if there is nothing."""
        if not self._waiting:
            return None
        part = Part(self._replica, self._request_id, self._sent, tuple(self._waiting))
        self._sent += len(self._waiting)
        self._waiting.clear()
        return part


class Link:
    """The way that the answers to one ingress replica share."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._answers: dict[Outgoing, None] = {}  # in the order they began
        self._due: asyncio.Event | None = None
        self._timer: asyncio.Handle | None = None
        self._last_sent = float("-inf")

    @property
    def idle(self) -> bool:
        """Whether no answer uses it."""
        return not self._answers

    def enter(self, answer: Outgoing) -> None:
        self._answers[answer] = None

    def leave(self, answer: Outgoing) -> None:
        del self._answers[answer]
        if self.idle and self._due is not None:
            self._due.set()

    def wake(self) -> bool:
        """Have what waits sent when the interval is over. False if nobody listens."""
        if self._due is None:
            return False
        if self._timer is None:
            loop = asyncio.get_running_loop()
            wait_s = self._last_sent + self._interval_s - loop.time()
            # The callbacks of a step's other answers are in the loop's queue already, and so come before this one
            self._timer = loop.call_later(wait_s, self._due.set) if wait_s > 0 else loop.call_soon(self._due.set)
        return True

    async def messages(self) -> AsyncGenerator[tuple[Part, ...], None]:
        if self._due is not None:
            self._due.set()
        self._due = due = asyncio.Event()
        self._rest()
        try:
            while self._answers and self._due is due:
                if parts := tuple(part for answer in self._answers if (part := answer.take())):
                    self._last_sent = asyncio.get_running_loop().time()
                    yield parts
                await due.wait()
                due.clear()
                self._rest()
        finally:
            if self._due is due:
                self._due = None
                self._rest()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
