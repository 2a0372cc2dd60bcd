"""A message of several tasks answered one task at a time: what is divided, and how the answers become one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dlp_core.decision import RoutingOptions
from dlp_core.engine.request import Plan, Sampling
from dlp_core.generation.generator import Generator
from dlp_core.generation.messages import Delta, Finished, GenerationRequest
from dlp_core.generation.planning import planner
from dlp_core.generation.tasks import JoinedSpans, Task, divided
from dlp_core.mix import EMPTY_MIX, Mix, Span
from dlp_core.router import Passage, Router, Routing
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import Tools
from dlp_core.together import ANY
from examples.tiny.model import tiny_tokenizer
from tests.dlp_core.generation.test_generator import codec, engine  # noqa: F401 - fixtures
from tests.support.paths import ROOT

A, B = Mix.of({"a": 1.0}), Mix.of({"b": 1.0})
HISTORY = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))


def found(*parts: tuple[str, str]) -> tuple[str, list[Passage]]:
    """A text of parts, each with the adapter it fits; "" fits none."""
    text, passages = "", []
    for part, name in parts:
        routing = Routing.of({"a": float(name != "b"), "b": float(name == "b")}, margin=9.0 if name else -9.0)
        passages.append(Passage(len(text), len(text) + len(part), routing))
        text += part
    return text, passages


def asked(*parts: tuple[str, str]) -> list[tuple[str, Mix]]:
    text, passages = found(*parts)
    made = divided((*HISTORY, Message("user", text)), passages, lambda passage: passage.routing.mix())
    assert all(messages[:-1] == HISTORY for messages, _ in made)
    return [(messages[-1].content, mix) for messages, mix in made]


def test_each_passage_becomes_a_message_without_the_number_that_a_list_gave_it() -> None:
    assert asked(("1. one\n\n", "a"), ("(2) two", "b")) == [("one", A), ("two", B)]
    assert asked(("3.5 is a number.\n\n", "a"), ("two\n", "b")) == [("3.5 is a number.", A), ("two", B)]


def test_what_fits_no_adapter_is_answered_by_the_backbone_beside_tasks_that_do() -> None:
    assert asked(("one\n\n", "a"), ("what?\n\n", ""), ("two", "b")) == [("one", A), ("what?", EMPTY_MIX), ("two", B)]


@pytest.mark.parametrize("parts", [[("one", "a")], [("one\n", "a"), ("two", "a")], [("one\n", "a"), ("what?", "")]])
def test_one_task_is_not_divided(parts: list[tuple[str, str]]) -> None:
    assert asked(*parts) == []


def test_a_message_that_is_not_the_users_is_not_divided() -> None:
    text, passages = found(("one\n\n", "a"), ("two", "b"))
    messages = (Message("user", "Look it up"), Message("tool", text))
    assert divided(messages, passages, lambda passage: passage.routing.mix()) == []
    after = (Message("user", text), Message("tool", "what was found"))
    assert divided(after, passages, lambda passage: passage.routing.mix()) == []


def test_spans_are_those_of_all_prompts_and_then_of_all_answers() -> None:
    spans = JoinedSpans([(4, Plan.of(Mix.of({"a@1": 1.0}))), (6, Plan(((0, EMPTY_MIX), (2, B))))])
    assert spans.joined() == (Span(0, 4, A), Span(4, 6, EMPTY_MIX), Span(6, 10, B))
    spans.set(0, [Span(0, 7, A)])
    spans.set(1, [Span(0, 2, EMPTY_MIX), Span(2, 7, B)])
    assert spans.joined() == (Span(0, 4, A), Span(4, 6, EMPTY_MIX), Span(6, 10, B), Span(10, 13, A), Span(13, 14, B))
    same = JoinedSpans([(4, Plan.of(A)), (6, Plan.of(A))])
    assert same.joined() == (Span(0, 10, A),)


TWO = "Show the last 20 lines of server.log\n\nTurn the third of March 2021 into YYYY-MM-DD"


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({}, True),
        ({"source": TWO}, False),
        ({"tools": Tools(({"type": "function", "function": {"name": "f"}},), "auto")}, False),
        ({"sampling": Sampling(response_format='{"type": "object"}')}, False),
        ({"source": (Message("user", "Show the last 20 lines of server.log"),)}, False),
    ],
)
def test_the_demos_router_finds_two_tasks_and_an_answer_of_one_form_stays_one(
    change: dict[str, Any], apart: bool
) -> None:
    router = Router.load(ROOT / "examples/bank/router")
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=n, qualified_name=f"{n}@1") for n in router.labels])
    bank.recipe_mixes, bank.together = {}, ANY
    reader = TextCodec(tiny_tokenizer(), context=4096)
    options = RoutingOptions("auto", top_p=0.9, max_adapters=3, by_sentence=True, by_task=True)
    source = (Message("user", TWO),)
    request = GenerationRequest("1", "b1", EMPTY_MIX, source, Sampling(), by_sentence=options, salt="s")
    request = replace(request, **change)
    prompt = reader.encode(TWO) if isinstance(request.source, str) else reader.encode_chat(source)
    made = planner(request, bank, router, reader, max_adapters=8)(prompt)
    if not apart:
        assert isinstance(made, Plan)
        return
    assert isinstance(made, tuple)
    assert [task.messages[-1].content for task in made] == TWO.split("\n\n")
    plans = [task.plan(reader.encode_chat(task.messages)) for task in made]
    assert [str(plan.spans[0][1]) for plan in plans] == ["shell@1=1.00", "iso_date@1=1.00"]
    assert {plan.salt for plan in plans} == {"s"}


@pytest.mark.model
async def test_answers_are_those_of_the_tasks_alone_with_an_empty_line_between(engine: Any, codec: Any) -> None:  # noqa: F811
    generator = Generator(engine, codec)
    a = Mix.of({"a": 1.0})
    asked = [((Message("user", "the user"),), a), ((Message("user", "and the assistant"),), EMPTY_MIX)]
    free = await generator.complete(*asked[0], Sampling(max_tokens=6, ignore_eos=True), request_id="free")
    stop = free.text[2:4]
    both = Sampling(max_tokens=9, ignore_eos=True, logprobs=1)
    alone = [await generator.complete(*asked[0], both, request_id="first", stop=(stop,))]
    assert alone[0].finished is not None
    stopped = alone[0].finished.completion_tokens
    left = replace(both, max_tokens=9 - stopped)
    alone.append(await generator.complete(*asked[1], left, request_id="second", stop=(stop,)))
    tasks = tuple(Task(messages, lambda prompt, mix=mix: Plan.of(mix)) for messages, mix in asked)  # type: ignore[misc]
    source = (Message("user", "the user and the assistant"),)
    answering = generator.generate(source, lambda prompt: tasks, both, request_id="both", stop=(stop,))
    pieces = [piece async for piece in answering]
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    text = "".join(delta.text for delta in deltas)
    assert text == f"{alone[0].text}\n\n{alone[1].text}"
    ends = [one.finished for one in alone if one.finished is not None]
    first, second = (end.prompt_tokens for end in ends)
    prompts = first + second
    expected = (Span(0, first, a), Span(first, prompts, EMPTY_MIX), Span(prompts, prompts + stopped, a))
    expected += (Span(prompts + stopped, prompts + 9, EMPTY_MIX),)
    assert pieces[-1] == Finished("length", prompts, 9, expected)
    told = [delta.spans for delta in deltas if delta.spans]
    assert [spans[-1].mix for spans in told] == [a, EMPTY_MIX], "the mix is told where its answer begins"
    for logprob in (logprob for delta in deltas for logprob in delta.logprobs):
        assert text[logprob.offset :].startswith(logprob.token.text) or "\ufffd" in logprob.token.text
    few = replace(both, max_tokens=2)
    short = await generator.complete(source, lambda prompt: tasks, few, request_id="short")
    assert short.finished is not None
    assert (short.finished.finish_reason, short.finished.completion_tokens) == ("length", 2)
    assert "\n\n" not in short.text, "nothing is left for the second"
