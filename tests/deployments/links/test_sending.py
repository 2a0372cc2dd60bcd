"""What a backbone replica sends when, on a clock that leaps: messages are counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import pytest

from deployments.links.parts import Listening, Part
from deployments.links.sending import Outgoing, Sender
from dlp_core.generation.messages import Delta, Finished
from tests.support.clock import run

REPLICA = "replica"
END = Finished("stop", 1, 2, ())


class Replica:
    """A sender with answers to one ingress replica, and what its link brought, with the time of each message."""

    def __init__(self, stack: ExitStack, answers: int = 1, interval_s: float = 0.0) -> None:
        self.sender = Sender(REPLICA, interval_s)
        self.answers = [self.answer(stack, f"id-{number}") for number in range(answers)]
        self.messages: list[tuple[float, tuple[Part, ...]]] = []

    def answer(self, stack: ExitStack, request_id: str, *, stream: bool = True, ingress: str = "ingress") -> Outgoing:
        return stack.enter_context(self.sender.answer(request_id, ingress, stream=stream))

    def listen(self, replica: str = REPLICA) -> AsyncGenerator[tuple[Part, ...], None]:
        return self.sender.listen(Listening(replica, "ingress"))

    async def follow(self) -> None:
        async with aclosing(self.listen()) as messages:
            async for parts in messages:
                self.messages.append((asyncio.get_running_loop().time(), parts))

    async def step(self, number: int) -> None:
        """What a step of the engine does: in one callback, it wakes the task of each answer, which adds a piece."""

        async def add(answer: Outgoing) -> None:
            assert answer.add(Delta(f"{number} ")) is None

        await asyncio.gather(*map(add, self.answers))

    def begin(self) -> None:
        for answer in self.answers:
            assert answer.add(Delta("first ")) is not None


def part(request_id: str, position: int, *pieces: Delta | Finished) -> Part:
    return Part(REPLICA, request_id, position, pieces)


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_until_somebody_listens_an_answers_call_sends_each_piece() -> None:
    with ExitStack() as stack:
        [answer] = Replica(stack).answers
        assert answer.add(Delta("a")) == part("id-0", 0, Delta("a"))
        assert answer.add(Delta("b")) == part("id-0", 1, Delta("b"))
        assert answer.add(END) == part("id-0", 2, END)


@pytest.mark.parametrize("answers", [2, 16])
def test_a_step_is_one_message_however_many_answers_it_is_for(answers: int) -> None:
    async def main() -> list[tuple[float, tuple[Part, ...]]]:
        with ExitStack() as stack:
            replica = Replica(stack, answers)
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            for number in range(5):
                await replica.step(number)
                await settle()
        await following
        return replica.messages

    messages = [parts for _, parts in run(main())]
    assert messages == [
        tuple(part(f"id-{index}", 1 + number, Delta(f"{number} ")) for index in range(answers)) for number in range(5)
    ]


def test_steps_shorter_than_the_interval_share_a_message() -> None:
    """Ten steps of 6 ms: the first is sent at once, and then what 20 ms bring."""

    async def main() -> list[tuple[float, tuple[Part, ...]]]:
        with ExitStack() as stack:
            replica = Replica(stack, answers=3, interval_s=0.020)
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            for number in range(10):
                await replica.step(number)
                await asyncio.sleep(0.006)
            await asyncio.sleep(1)
        await following
        return replica.messages

    messages = run(main())
    assert [round(time, 6) for time, _ in messages] == [0, 0.020, 0.040, 0.060]
    assert [[len(one.pieces) for one in parts] for _, parts in messages] == [[1] * 3, [3] * 3, [3] * 3, [3] * 3]


def test_a_step_longer_than_the_interval_waits_for_nothing() -> None:
    async def main() -> list[tuple[float, tuple[Part, ...]]]:
        with ExitStack() as stack:
            replica = Replica(stack, answers=2, interval_s=0.020)
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            for number in range(3):
                await replica.step(number)
                await asyncio.sleep(0.075)
        await following
        return replica.messages

    assert [round(time, 6) for time, _ in run(main())] == [0, 0.075, 0.150]


def test_first_pieces_and_ends_wait_for_nobody_and_an_end_takes_along_what_waits() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack, answers=2, interval_s=1.0)
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            await replica.step(0)
            await settle()
            await replica.step(1)  # within the interval: it waits
            ending, other = replica.answers
            assert ending.add(END) == part("id-0", 2, Delta("1 "), END)
            late = replica.answer(stack, "late")
            assert late.add(Delta("late")) == part("late", 0, Delta("late"))
            await asyncio.sleep(2)
            assert [parts for _, parts in replica.messages] == [
                (part("id-0", 1, Delta("0 ")), part("id-1", 1, Delta("0 "))),
                (part("id-1", 2, Delta("1 ")),),
            ]
            assert other.add(END) == part("id-1", 3, END)
        await following

    run(main())


def test_what_is_not_streamed_is_sent_in_one_part_at_its_end() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack)
            replica.begin()
            whole = replica.answer(stack, "whole", stream=False)
            following = asyncio.create_task(replica.follow())
            await settle()
            assert [whole.add(Delta(text)) for text in "abc"] == [None] * 3
            await asyncio.sleep(1)
            assert whole.add(END) == part("whole", 0, *map(Delta, "abc"), END)
            assert not replica.messages
        await following

    run(main())


def test_a_link_ends_with_its_last_answer_and_does_not_begin_without_one() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack, answers=2)
            replica.begin()
            assert [parts async for parts in replica.listen("another")] == []
            following = asyncio.create_task(replica.follow())
            await settle()
            assert not following.done()
        await following
        await replica.follow()
        assert not replica.messages
        assert not replica.sender._links, "nothing is kept for an ingress replica without answers"

    run(main())


def test_an_answer_that_is_aborted_takes_its_pieces_with_it_and_no_others() -> None:
    async def main() -> None:
        with ExitStack() as stack, ExitStack() as aborted:
            replica = Replica(stack, interval_s=1.0)
            replica.answers.append(replica.answer(aborted, "aborted"))
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            for number in range(2):
                await replica.step(number)
                await settle()
            aborted.close()
            await asyncio.sleep(2)
            assert [[one.request_id for one in parts] for _, parts in replica.messages] == [
                ["id-0", "aborted"],
                ["id-0"],
            ]
        await following

    run(main())


def test_ingress_replicas_have_links_of_their_own() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack)
            other = replica.answer(stack, "other", ingress="other")
            replica.begin()
            following = asyncio.create_task(replica.follow())
            await settle()
            assert [other.add(Delta(text)) is None for text in "abc"] == [False] * 3
            await settle()
            assert not replica.messages
        await following

    run(main())


def test_when_nobody_listens_any_more_pieces_go_by_the_answers_own_call_again() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack, interval_s=1.0)
            replica.begin()
            [answer] = replica.answers
            following = asyncio.create_task(replica.follow())
            await settle()
            for number in range(2):
                await replica.step(number)
                await settle()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            assert answer.add(Delta("after")) == part("id-0", 2, Delta("1 "), Delta("after"))
            await asyncio.sleep(2)
            assert answer.add(END) == part("id-0", 4, END)

    run(main())


def test_who_listens_next_relieves_who_listened_before() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            replica = Replica(stack)
            replica.begin()
            first = asyncio.create_task(replica.follow())
            await settle()
            second = asyncio.create_task(replica.follow())
            await first
            await replica.step(0)
            await settle()
            assert [parts for _, parts in replica.messages] == [(part("id-0", 1, Delta("0 ")),)]
        await second

    run(main())
