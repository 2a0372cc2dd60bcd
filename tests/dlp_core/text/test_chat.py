"""Which part of a conversation routes it, and that nothing else sways a real router."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from dlp_core.router import Routing
from dlp_core.text.chat import FOLLOW_UP_CHARS, Message, routing_texts
from dlp_core.text.tools import ToolCall
from tests.support.router_rows import TASKS, make_rows, trained

FRESH = make_rows(25, seed=41)
POLICY = "You are the assistant of ACME. Be concise, never disclose internal data, hand billing questions over. " * 30


def user(text: str) -> Message:
    return Message("user", text)


def test_the_last_user_turn_comes_first() -> None:
    turns = [Message("system", "s"), user("one"), Message("assistant", "a"), user("two")]
    assert routing_texts(turns) == ("two", "one\ntwo", "s\n\ntwo")
    assert routing_texts([*turns, Message("assistant", "b")])[0] == "two"
    assert routing_texts([user("one")]) == ("one",)


def test_without_a_user_the_last_turn_is_read() -> None:
    assert routing_texts([Message("system", "s")]) == ("s",)
    assert routing_texts([Message("system", "s"), Message("assistant", "a")]) == ("a",)


def test_a_long_turn_is_not_a_follow_up() -> None:
    assert routing_texts([user("one"), user("x" * (FOLLOW_UP_CHARS + 1))]) == ("x" * (FOLLOW_UP_CHARS + 1),)


def test_an_empty_conversation_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        routing_texts([])


def route(*messages: Message) -> Routing:
    return trained()[0].route_first([routing_texts(messages)])[0]


def test_a_system_prompt_of_three_thousand_characters_does_not_drown_the_user() -> None:
    for row in FRESH:
        alone, under_policy = route(user(row.input)), route(Message("system", POLICY), user(row.input))
        assert (alone.fits, alone.best) == (True, row.task)
        assert under_policy == alone


def test_a_new_topic_replaces_the_one_before() -> None:
    rng = Random(2)
    for row in FRESH:
        before = rng.choice([other for other in FRESH if other.task != row.task])
        assert route(user(before.input), Message("assistant", "Done."), user(row.input)).best == row.task


def test_the_router_says_which_text_decided() -> None:
    turns = set()
    for row in FRESH:
        conversation = [user(row.input), Message("assistant", "Done."), user("and the other one?")]
        routing = route(*conversation)
        [alone] = trained()[0].route([routing_texts(conversation)[routing.turn]])
        assert (alone.fits, alone.best) == (routing.fits, routing.best)
        turns.add(routing.turn)
    assert 1 in turns


def test_a_follow_up_stays_with_the_turn_before_it() -> None:
    follow_ups = ("and the other one?", "no, the second", "again, please", "thanks, now in reverse")
    found = [
        (routing := route(user(row.input), Message("assistant", "Done."), user(said))).fits and routing.best == row.task
        for row in FRESH
        for said in follow_ups
    ]
    assert np.mean(found) >= 0.9


def test_an_instruction_in_the_system_prompt_counts_if_the_data_alone_is_ambiguous() -> None:
    rng = Random(4)
    found = []
    for _ in range(25):
        instruction, data = TASKS["flight_json"](rng).split("\n", 1)
        found.append(route(Message("system", instruction), user(data.replace("fly", "go"))).best == "flight_json")
    assert np.mean(found) >= 0.9


def test_a_text_that_fits_nothing_is_routed_as_the_last_turn_alone() -> None:
    small_talk = user("My landlord refuses to repair the boiler, what are my rights?")
    assert route(user("hello"), small_talk) == route(small_talk)


def test_results_of_tools_count_after_the_question_they_were_looked_up_for() -> None:
    called = [Message("assistant", "", (ToolCall("1", "f", "{}"),)), Message("tool", "found", tool_call_id="1")]
    assert routing_texts([user("one"), *called]) == ("one", "one\n\nfound")
    again = [*called, Message("tool", "more", tool_call_id="2")]
    assert routing_texts([Message("system", "s"), user("zero"), *called, user("one"), *again]) == (
        "one",
        "zero\none",
        "one\n\nfound\nmore",
        "s\n\none",
    )


def test_what_was_looked_up_does_not_drown_the_question() -> None:
    rng = Random(6)
    for row in FRESH:
        other = rng.choice([each for each in FRESH if each.task != row.task])
        assert route(user(row.input), Message("tool", other.input, tool_call_id="1")).best == row.task
