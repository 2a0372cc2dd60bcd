"""The ingress's side: the parts of each answer in order, whether its own call brings them or the link to its replica.

What waits for a client that reads slowly is bounded by what its own answer may have, and holds up no other answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from contextvars import Context

from deployments.links.parts import Part
from dlp_core.errors import EngineFailed
from dlp_core.generation.messages import Piece

log = logging.getLogger("ray.serve")

Listen = Callable[[str], AsyncGenerator[tuple[Part, ...], None]]
"""Listens to the backbone replica of this id: its Sender.listen."""


class Receiver:
    """The answers that one ingress replica receives. Use from one event loop."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._answers: dict[str, Incoming] = {}
        self._links: dict[str, Link] = {}

    async def receive(self, request_id: str, call: AsyncIterator[Part]) -> AsyncGenerator[tuple[Piece, ...], None]:
        """The pieces of an answer, in one tuple if they came together. `call` is the answer's own; its errors are
        raised. Raises EngineFailed if pieces were lost on the way."""
        answer = self._answers[request_id] = Incoming()
        reading = asyncio.create_task(self._read(answer, call))  # what the link brings does not wait for the call
        try:
            while pieces := await answer.next():
                yield pieces
        finally:
            del self._answers[request_id]
            self._leave(answer)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _read(self, answer: Incoming, call: AsyncIterator[Part]) -> None:
        try:
            async for part in call:
                self._arrived(answer, part)
                if answer.holds(part):
                    self._needs_link(answer)
            answer.end()
            if answer.incomplete:
                self._needs_link(answer)
        except Exception as error:
            answer.end(error)
        except asyncio.CancelledError:  # of this task, because nobody wants the answer any more, or of the call
            answer.end(_lost())
            raise

    def _arrived(self, answer: Incoming, part: Part) -> None:
        if answer.link is None:
            answer.link = self._links.setdefault(part.replica, Link(part.replica))
            answer.link.answers.add(answer)
            self._open(answer.link)
        answer.put(part)

    def _open(self, link: Link) -> None:
        """One answer alone needs no link: its call brings as many messages."""
        if len(link.answers) > 1 and link.listening is None and not link.suspects:
            # in a context of its own: Serve cancels the calls of a request whose client leaves
            link.listening = asyncio.create_task(self._follow(link), context=Context())

    async def _follow(self, link: Link) -> None:
        brought = False
        try:
            async with aclosing(self._listen(link.replica)) as messages:
                async for parts in messages:
                    brought = True
                    for part in parts:
                        if answer := self._answers.get(part.request_id):
                            self._arrived(answer, part)
        except BaseException as error:
            link.suspects = {answer for answer in self._answers.values() if answer.link in (link, None)}
            if not isinstance(error, Exception):
                raise
            log.warning("lost the link to backbone replica %s: %s", link.replica, error)
        finally:
            link.listening = None
            for answer in link.answers:
                if answer.ended and answer.incomplete:
                    self._needs_link(answer)
            if brought:  # it ended between two answers, of which the second was not known yet
                self._open(link)
            self._forget_if_unused(link)

    def _leave(self, answer: Incoming) -> None:
        for link in list(self._links.values()):
            link.answers.discard(answer)
            link.suspects.discard(answer)
            self._forget_if_unused(link)

    def _forget_if_unused(self, link: Link) -> None:
        """Nobody but the replica ends a link: it may bring parts of answers that are not known yet to be its own."""
        if not link.answers and not link.suspects and link.listening is None:
            self._links.pop(link.replica, None)

    def _needs_link(self, answer: Incoming) -> None:
        """A call is in order: what is missing before something that it brought can only come by the link."""
        if answer.link is None or answer.link.listening is None:
            answer.end(_lost())


class Link:
    """The link to one backbone replica, and the answers known to be its own."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.answers: set[Incoming] = set()
        self.listening: asyncio.Task[None] | None = None
        """None while it is closed."""
        self.suspects: set[Incoming] = set()
        """Answers of which it may have lost parts when it broke. Until all of them have ended it stays closed, so that
        what is missing shows: nothing else can bring it."""


class Incoming:
    """One answer: the pieces that nobody has taken yet, and the parts that came before their turn."""

    def __init__(self) -> None:
        self.link: Link | None = None
        """That of its replica, once it is known which that is."""
        self.ended = False
        """Whether its call has ended."""
        self._error: Exception | None = None
        self._ready: list[Piece] = []
        self._position = 0
        self._early: dict[int, tuple[Piece, ...]] = {}
        self._changed = asyncio.Event()

    @property
    def incomplete(self) -> bool:
        """Whether something came before its turn."""
        return bool(self._early)

    def holds(self, part: Part) -> bool:
        """Whether it is not this part's turn yet."""
        return part.position in self._early

    def put(self, part: Part) -> None:
        self._early[part.position] = part.pieces
        while (pieces := self._early.pop(self._position, None)) is not None:
            self._ready += pieces
            self._position += len(pieces)
        self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing comes by its call any more. The first error is raised once what came before it is taken."""
        self.ended = True
        self._error = self._error or error
        self._changed.set()

    async def next(self) -> tuple[Piece, ...]:
        """Wait for pieces; none after the last. Raises the error that ended the answer."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self.ended and not self._early:
                return ()
            self._changed.clear()
            await self._changed.wait()
        pieces, self._ready = tuple(self._ready), []
        return pieces


def _lost() -> EngineFailed:
    return EngineFailed("a part of the answer was lost on its way from the replica; retry", retry_after=1.0)
