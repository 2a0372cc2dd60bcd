"""What an ingress replica makes of the parts of its answers: in order whichever way they come, or an error."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from deployments.links.parts import Part
from deployments.links.receiving import Receiver
from dlp_core.errors import EngineFailed, StepFailed
from dlp_core.generation.messages import Delta, Finished, Piece
from tests.support.clock import run

END = Finished("stop", 1, 2, ())
A, B, C, D = (Delta(text) for text in "abcd")

Said = Part | tuple[Part, ...] | Exception | None


class Way:
    """A call that brings what it is told to, until None ends it or an exception."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Said] = asyncio.Queue()
        self.closed = False

    def say(self, *items: Said) -> None:
        for item in items:
            self._said.put_nowait(item)

    async def __call__(self) -> AsyncGenerator[Any, None]:
        try:
            while (item := await self._said.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


CLIENT = contextvars.ContextVar("CLIENT", default="none")


class Ingress:
    """A receiver whose links are `Way`s, in the order they were opened."""

    def __init__(self) -> None:
        self.links: list[tuple[str, Way]] = []
        self.clients: list[str] = []
        self.receiver = Receiver(self._listen)

    async def _listen(self, replica: str) -> AsyncIterator[tuple[Part, ...]]:
        self.links.append((replica, way := Way()))
        self.clients.append(CLIENT.get())
        async with aclosing(way()) as messages:
            async for parts in messages:
                yield parts

    @property
    def link(self) -> Way:
        return self.links[-1][1]

    def answer(self, request_id: str) -> Answer:
        return Answer(self, request_id)


class Answer:
    """One answer, read as fast as it comes."""

    def __init__(self, ingress: Ingress, request_id: str) -> None:
        self.call = Way()
        self.pieces: list[Piece] = []
        self.error: Exception | None = None
        self._received = ingress.receiver.receive(request_id, self.call())
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async with aclosing(self._received) as received:
                async for pieces in received:
                    self.pieces += pieces
        except EngineFailed as error:
            self.error = error


def part(request_id: str, position: int, *pieces: Piece, replica: str = "replica") -> Part:
    return Part(replica, request_id, position, pieces)


async def settle(rounds: int = 30) -> None:
    """Lets every task run until it waits for something."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def two_answers(ingress: Ingress) -> tuple[Answer, Answer]:
    """Two answers of one replica that have begun, and so have a link."""
    one, two = ingress.answer("one"), ingress.answer("two")
    for request_id, answer in (("one", one), ("two", two)):
        answer.call.say(part(request_id, 0, A))
    await settle()
    return one, two


def test_an_answer_alone_comes_by_its_call() -> None:
    async def main() -> None:
        ingress = Ingress()
        answer = ingress.answer("one")
        answer.call.say(part("one", 0, A), part("one", 1, B, C), part("one", 3, END), None)
        await answer.task
        assert answer.pieces == [A, B, C, END]
        assert not ingress.links
        assert not ingress.receiver._answers
        assert not ingress.receiver._links

    run(main())


def test_the_second_answer_of_a_replica_opens_its_link_and_the_replica_ends_it() -> None:
    async def main() -> None:
        ingress = Ingress()
        other = ingress.answer("other")
        other.call.say(part("other", 0, A, replica="another"))
        one, two = await two_answers(ingress)
        assert [replica for replica, _ in ingress.links] == ["replica"]
        ingress.link.say((part("one", 1, B), part("two", 1, C)), (part("two", 2, D), part("gone", 7, D)))
        await settle()
        assert (one.pieces, two.pieces) == ([A, B], [A, C, D])
        one.call.say(part("one", 2, END), None)
        await one.task
        two.call.say(part("two", 3, END), None)
        await two.task
        assert not ingress.link.closed, "it may bring parts of answers that are on their way"
        ingress.link.say((part("late", 1, B),), None)
        await settle()
        assert ingress.link.closed
        assert list(ingress.receiver._links) == ["another"]

    run(main())


def test_the_link_is_no_part_of_the_request_that_opens_it() -> None:
    """Serve cancels what a request has called once its client leaves, by a context variable."""

    async def main() -> None:
        ingress = Ingress()
        CLIENT.set("somebody")
        await two_answers(ingress)
        assert ingress.clients == ["none"]

    run(main())


@pytest.mark.parametrize("order", ["end first", "beginning last"])
def test_parts_that_overtake_others_wait_for_them(order: str) -> None:
    async def main() -> None:
        ingress = Ingress()
        _, two = await two_answers(ingress)
        if order == "end first":
            two.call.say(part("two", 3, D, END), None)
            await settle()
            assert two.pieces == [A]
            ingress.link.say((part("two", 1, B),), (part("two", 2, C),))
            await two.task
            assert two.pieces == [A, B, C, D, END]
        else:
            third = ingress.answer("three")
            ingress.link.say((part("three", 1, B),))
            await settle()
            assert third.pieces == []
            third.call.say(part("three", 0, A), part("three", 2, END), None)
            await third.task
            assert third.pieces == [A, B, END]

    run(main())


def test_an_error_of_the_call_is_raised_after_what_came_before_it() -> None:
    async def main() -> None:
        ingress = Ingress()
        one, two = await two_answers(ingress)
        one.call.say(part("one", 1, B), StepFailed("the step failed"))
        await one.task
        assert (one.pieces, type(one.error)) == ([A, B], StepFailed)
        two.call.say(part("two", 1, END), None)
        await two.task
        assert (two.pieces, two.error) == ([A, END], None)

    run(main())


def test_a_call_that_is_cancelled_from_elsewhere_fails_its_answer_instead_of_leaving_it_waiting() -> None:
    async def main() -> None:
        ingress = Ingress()

        async def cancelled() -> AsyncGenerator[Part, None]:
            yield part("one", 0, A)
            raise asyncio.CancelledError

        received = ingress.receiver.receive("one", cancelled())
        assert await anext(received) == (A,)
        with pytest.raises(EngineFailed):
            await anext(received)

    run(main())


def test_a_link_that_breaks_costs_those_their_answer_of_which_it_lost_something() -> None:
    """What it lost shows when the answer's call goes on, at a position that is not the next."""

    async def main() -> None:
        ingress = Ingress()
        one, two = await two_answers(ingress)
        three = ingress.answer("three")
        three.call.say(part("three", 0, A))
        await settle()
        ingress.link.say((part("one", 1, B),), RuntimeError("connection reset"))
        await settle()
        one.call.say(part("one", 2, C), part("one", 3, END), None)
        two.call.say(part("two", 2, C))
        await one.task
        await two.task
        assert (one.pieces, one.error) == ([A, B, C, END], None)
        assert two.pieces == [A]
        assert "was lost on its way" in str(two.error)
        assert two.call.closed
        assert len(ingress.links) == 1, "a link that broke is not opened again for the answers it may have harmed"
        three.call.say(part("three", 1, END), None)
        await three.task
        assert three.error is None

    run(main())


def test_a_link_that_broke_is_opened_again_once_the_answers_it_may_have_harmed_have_ended() -> None:
    async def main() -> None:
        ingress = Ingress()
        one, two = await two_answers(ingress)
        unknown = ingress.answer("unknown")
        await settle()
        ingress.link.say(RuntimeError("connection reset"))
        await settle()
        for request_id, answer in (("one", one), ("two", two)):
            answer.call.say(part(request_id, 1, END), None)
            await answer.task
        later = [ingress.answer(f"later-{number}") for number in range(3)]
        for number, answer in enumerate(later[:2]):
            answer.call.say(part(f"later-{number}", 0, A))
        await settle()
        assert len(ingress.links) == 1, "it may have lost parts of an answer of which nothing has come yet"
        unknown.call.say(part("unknown", 0, A), part("unknown", 2, C))
        await unknown.task
        assert "was lost on its way" in str(unknown.error)
        later[2].call.say(part("later-2", 0, A))
        await settle()
        assert len(ingress.links) == 2

    run(main())


def test_a_link_that_breaks_after_the_call_has_ended_fails_the_answer_too() -> None:
    async def main() -> None:
        ingress = Ingress()
        _, two = await two_answers(ingress)
        two.call.say(part("two", 2, END), None)
        await settle()
        assert two.error is None
        ingress.link.say(RuntimeError("connection reset"))
        await two.task
        assert "was lost on its way" in str(two.error)

    run(main())


def test_a_link_that_ended_between_answers_is_opened_again() -> None:
    async def main() -> None:
        ingress = Ingress()
        one, two = await two_answers(ingress)
        ingress.link.say((part("one", 1, B),), None)
        await settle()
        assert len(ingress.links) == 2
        ingress.link.say((part("one", 2, C), part("two", 1, B)))
        await settle()
        assert (one.pieces, two.pieces) == ([A, B, C], [A, B])

    run(main())


def test_a_replica_that_does_not_want_to_be_listened_to_is_asked_again_by_the_next_answer_only() -> None:
    async def main() -> None:
        ingress = Ingress()
        one, _ = await two_answers(ingress)
        ingress.link.say(None)
        await settle()
        assert len(ingress.links) == 1
        one.call.say(part("one", 1, B))
        await settle()
        assert one.pieces == [A, B]
        ingress.answer("three").call.say(part("three", 0, A))
        await settle()
        assert len(ingress.links) == 2

    run(main())


def test_a_reader_that_is_slow_holds_up_nobody() -> None:
    async def main() -> None:
        ingress = Ingress()
        slow_call = Way()
        slow = ingress.receiver.receive("slow", slow_call())
        slow_call.say(part("slow", 0, A))
        assert await anext(slow) == (A,)
        quick = ingress.answer("quick")
        quick.call.say(part("quick", 0, A))
        await settle()
        for position in range(1, 100):
            ingress.link.say((part("slow", position, B), part("quick", position, B)))
        await settle(500)
        assert len(quick.pieces) == 100
        slow_call.say(part("slow", 100, END), None)
        await settle()
        assert await anext(slow) == (*[B] * 99, END)
        assert [pieces async for pieces in slow] == []

    run(main())


def test_an_answer_that_nobody_wants_any_more_ends_the_reading_of_its_call() -> None:
    async def main() -> None:
        ingress = Ingress()
        one, two = await two_answers(ingress)
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        assert one.call.closed
        assert not ingress.link.closed
        ingress.link.say((part("one", 1, B), part("two", 1, B)))
        await settle()
        assert (one.pieces, two.pieces) == ([A], [A, B])

    run(main())
