"""A request's spans while its mix changes. Needs no vLLM."""

from __future__ import annotations

from dlp_core.engine.request import Plan, Sampling
from dlp_core.mix import EMPTY_MIX, Mix, Span
from dlp_core.vllm.request import Request

FIRST, SECOND = Mix.of({"a": 1.0}), Mix.of({"b": 1.0})


def request_of(*spans: tuple[int, Mix]) -> Request:
    return Request.of("r", [5, 6, 7], Plan(spans), Sampling(max_tokens=8), None)


def test_a_change_begins_at_the_token_it_was_found_at() -> None:
    request = request_of((0, FIRST))
    request.written += [1, 2]
    request.change(SECOND)
    assert request.reported() == (Span(0, 4, FIRST), Span(4, 5, SECOND))
    assert request.names == ("a", "b")


def test_a_change_at_the_first_token_takes_the_place_of_a_mix_that_begins_there() -> None:
    """Nothing was computed under it, so it is neither reported nor pinned."""
    request = request_of((0, EMPTY_MIX), (3, FIRST))
    request.written += [1]
    request.change(SECOND)
    assert request.reported() == (Span(0, 3, EMPTY_MIX), Span(3, 4, SECOND))
    assert request.names == ("b",)
