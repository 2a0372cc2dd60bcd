"""The answer on its way out: what is merged, in which order, what ends it, and that nothing runs on behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from deployments.args import LogArgs
from deployments.http.replies import Reply
from deployments.http.request_log import RequestRecord
from deployments.http.streams import AnswerStream
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.errors import DeadlineExceeded, DLPError, EngineFailed
from dlp_core.generation.messages import Delta, Finished, Piece
from dlp_core.mix import EMPTY_MIX, Mix, Span

NEVER = 3600.0
END = Finished("stop", 3, 2, ())


class Generation:
    """Says its pieces when it is told to go on, those of a tuple together, and remembers that it was closed."""

    def __init__(self, *pieces: Piece | tuple[Piece, ...] | Exception) -> None:
        self._pieces = pieces
        self._said = asyncio.Semaphore(0)
        self.closed = False

    def go_on(self, pieces: int = 1) -> None:
        for _ in range(pieces):
            self._said.release()

    async def __call__(self) -> AsyncGenerator[tuple[Piece, ...], None]:
        try:
            for piece in self._pieces:
                await self._said.acquire()
                if isinstance(piece, Exception):
                    raise piece
                yield piece if isinstance(piece, tuple) else (piece,)
        finally:
            self.closed = True


def answer_of(generations: Sequence[Generation], *, seconds: float = NEVER) -> AnswerStream:
    decision = Decision(RoutingOptions("base", 0.9, 3), "b1", EMPTY_MIX, {}, "base")
    return AnswerStream(
        Reply("cmpl-1", 0, "text", [decision]),
        [generation() for generation in generations],
        record=RequestRecord("id", "/v1/completions", LogArgs()),
        deadline=asyncio.get_running_loop().time() + seconds,
    )


def chunks(text: str) -> list[Any]:
    """The events of one string as they are sent."""
    lines = text.split("\n\n")
    assert lines.pop() == ""
    return [line if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


def said(chunk: Any) -> tuple[int, str, str | None]:
    [choice] = chunk["choices"]
    return choice["index"], choice["text"], choice["finish_reason"]


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_events_come_as_pieces_do_and_those_that_came_together_in_one_string() -> None:
    generation = Generation(Delta("a"), (Delta("b"), Delta("c")), Delta("d"), END)
    events = answer_of([generation]).events()
    generation.go_on()
    assert [said(chunk) for chunk in chunks(await anext(events))] == [(0, "a", None)]
    generation.go_on(2)
    await settle()
    assert [said(chunk) for chunk in chunks(await anext(events))] == [(0, text, None) for text in "bcd"]
    generation.go_on()
    last, done = chunks("".join([text async for text in events]))
    assert said(last) == (0, "", "stop")
    assert last["dlp"]["bank"] == "b1"
    assert done == "data: [DONE]"
    assert generation.closed


def test_spans_are_told_in_the_chunk_with_which_one_begins() -> None:
    spans = (Span(0, 3, EMPTY_MIX), Span(3, 4, Mix.of({"a": 1.0})))
    decision = Decision(RoutingOptions("auto", 0.9, 3), "b1", EMPTY_MIX, {"a": "sha256:a"}, "routed")
    reply = Reply("cmpl-1", 0, "text", [decision])
    chunk = reply.delta(0, Delta("b", (), (), spans))
    assert chunk["dlp"] == {
        "spans": [
            {"start": 0, "end": 3, "mix": []},
            {"start": 3, "end": 4, "mix": [{"adapter": "a", "weight": 1.0, "digest": "sha256:a"}]},
        ]
    }
    assert "dlp" not in reply.delta(0, Delta("a"))


async def test_choices_are_merged_in_the_order_they_speak_and_reported_in_their_own() -> None:
    first, second = Generation(Delta("a"), END), Generation(Delta("b"), Finished("length", 3, 5, ()))
    answer = answer_of([first, second])
    events = answer.events()
    second.go_on(3)
    await settle()
    assert [said(chunk) for chunk in chunks(await anext(events))] == [(1, "b", None), (1, "", "length")]
    first.go_on(3)
    *others, last, done = chunks("".join([text async for text in events]))
    assert [said(chunk) for chunk in (*others, last)] == [(0, "a", None), (0, "", "stop")]
    assert (last["dlp"]["choices"], done) == ([[], []], "data: [DONE]")


async def test_an_answer_that_is_not_streamed_is_one_object() -> None:
    found = Finished("stop", 3, 2, (), cached_tokens=2)  # of a prompt, which counts once
    generations = [Generation(Delta("a"), Delta("b"), found), Generation(Delta("c"), found)]
    for generation in generations:
        generation.go_on(4)
    response = await answer_of(generations).collect()
    assert [said(response | {"choices": [choice]}) for choice in response["choices"]] == [
        (0, "ab", "stop"),
        (1, "c", "stop"),
    ]
    assert response["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_the_first_error_ends_all_choices() -> None:
    talking, failing = Generation(Delta("a"), END), Generation(Delta("b"), EngineFailed("the replica stopped"))
    events = answer_of([talking, failing]).events()
    talking.go_on()
    failing.go_on(2)
    *others, last = chunks("".join([text async for text in events]))
    assert sorted(said(chunk) for chunk in others) == [(0, "a", None), (1, "b", None)]
    assert last["error"]["code"] == "engine_failed"
    assert talking.closed
    assert failing.closed


async def test_a_refusal_is_raised_before_the_answer_begins() -> None:
    refused, other = Generation(EngineFailed("no")), Generation(Delta("a"), END)
    answer = answer_of([refused, other])
    refused.go_on()
    with pytest.raises(EngineFailed):
        await answer.begin()
    assert refused.closed
    assert other.closed


async def test_a_client_that_leaves_before_the_first_piece_ends_the_generations() -> None:
    generation = Generation(Delta("a"), END)
    beginning = asyncio.create_task(answer_of([generation]).begin())
    await settle()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert generation.closed


async def test_what_came_before_an_error_is_sent_before_it() -> None:
    generation = Generation(Delta("a"), EngineFailed("the replica stopped"))
    generation.go_on(2)
    answer = answer_of([generation])
    await answer.begin()
    await settle()
    first, last = chunks("".join([text async for text in answer.events()]))
    assert said(first) == (0, "a", None)
    assert "error" in last


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_deadline_ends_it_and_closes_what_it_cuts_off(streamed: bool) -> None:
    generation = Generation(Delta("a"), END)
    generation.go_on()
    answer = answer_of([generation], seconds=0.05)
    if streamed:
        *_, last = chunks("".join([text async for text in answer.events()]))
        assert last["error"]["code"] == "deadline_exceeded"
    else:
        with pytest.raises(DeadlineExceeded):
            await answer.collect()
    assert generation.closed


async def test_a_generation_that_ends_without_saying_why_is_an_error() -> None:
    generation = Generation(Delta("a"))
    generation.go_on()
    with pytest.raises(DLPError, match="without a finish reason"):
        await answer_of([generation]).collect()


async def test_closing_ends_generations_that_nobody_asked_for_an_event_yet() -> None:
    generation = Generation(Delta("a"), END)
    generation.go_on()
    answer = answer_of([generation])
    await answer.begin()
    await answer.close()
    await answer.close()
    assert generation.closed
