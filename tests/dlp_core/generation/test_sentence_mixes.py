"""Which sentence gets which mix: in the prompt, and while the completion is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from dlp_core.decision import RoutingOptions
from dlp_core.engine.request import Plan, Sampling
from dlp_core.generation.messages import GenerationRequest
from dlp_core.generation.planning import planner
from dlp_core.generation.sentence_mixes import SentenceMixes
from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, select_top_p
from dlp_core.router import Routing
from dlp_core.router.passages import Passage
from dlp_core.text.chat import Message
from dlp_core.text.codec import Prompt, TextCodec
from dlp_core.text.sentences import split
from dlp_core.together import ANY, Together
from examples.tiny.model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CODEC = TextCodec(TOKENIZER, context=4096)
NAMES = ("apple", "bread", "cheese", "dates")


def divide(texts: Sequence[str]) -> list[Passage]:
    """Each sentence is a passage, for the last of NAMES that it has."""
    return [Passage(start, end, routed(texts[0][start:end])) for start, end in split(texts[0])] or [
        Passage(0, len(texts[0]), routed(texts[0]))
    ]


def routed(text: str) -> Routing:
    found = max(NAMES, key=text.rfind)
    fits = found in text
    return Routing.of({name: float(fits and name == found) for name in NAMES}, margin=9.0 if fits else -9.0)


@dataclass(eq=False)
class Decided:
    """A router that routes everything alike."""

    routing: Routing
    labels = NAMES
    encoder = SimpleNamespace(most_parts=16)

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        return [self.routing] * len(choices)


def mix(name: str) -> Mix:
    return Mix.of({name: 1.0})


def plan(prompt: Prompt, *request: str, max_adapters: int = 8) -> Plan:
    return SentenceMixes(divide, Routing.mix, max_adapters=max_adapters).plan(prompt, request, CODEC.stream(prompt))


def texts(prompt: Prompt, made: Plan) -> list[tuple[str, Mix]]:
    """What each span of the prompt says."""
    starts = [start for start, _ in made.spans]
    ends = [*starts[1:], len(prompt.ids)]
    return [(TOKENIZER.decode(prompt.ids[start:end]), one) for (start, one), end in zip(made.spans, ends, strict=True)]


def write(made: Plan, text: str) -> list[tuple[str, Mix]]:
    """The mixes the follower asks for, with the token it asked at."""
    assert made.follow is not None
    tokens = TOKENIZER(text).input_ids
    return [(TOKENIZER.decode([token]), one) for token in tokens if (one := made.follow(token)) is not None]


def chat(text: str) -> tuple[Prompt, Plan]:
    prompt = CODEC.encode_chat([Message("user", text)])
    return prompt, plan(prompt, text)


def test_each_passage_of_a_chat_has_its_mix() -> None:
    turns = [Message("system", "Be brief."), Message("user", "  Peel an apple. Then cut the bread.")]
    prompt = CODEC.encode_chat(turns)
    assert texts(prompt, plan(prompt, turns[1].content)) == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Peel an apple. ", mix("apple")),
        ("Then cut the bread.", mix("bread")),
        ("<|im_end|>\n<|im_start|>assistant\n", mix("apple")),
    ]


def test_a_request_of_one_passage_has_the_plan_of_a_request() -> None:
    for text in ("Peel an apple", "", "Nothing of that"):
        assert chat(text)[1] == Plan.of(routed(text).mix())
    prompt = CODEC.encode("Peel an apple")
    assert plan(prompt, prompt.text) == Plan.of(mix("apple"))


def test_a_completion_answers_one_passage_after_the_other() -> None:
    _, made = chat("Peel an apple. Cut the bread. Some dates.")
    assert write(made, "I like cheese. 3.5 of it.\n\nNow bread! End\n\nThis. Is\n\nAll") == [
        ("N", mix("bread")),
        ("T", mix("dates")),
    ]


def test_a_completion_with_numbers_goes_by_them() -> None:
    _, made = chat("Two things, please.\n\n1. Peel an apple.\n\n2. Cut the bread. Slowly.\n\n3. An apple")
    assert made.spans[-1][1] == mix("apple"), "the answer of line 1"
    assert write(made, "1. So.\n\nThus. 2 of\n2. Bread\n\nmuch\n4. no\n3. yes") == [
        ("2", mix("bread")),
        ("3", mix("apple")),
    ]


def test_an_answer_starts_with_the_first_passage_that_fits() -> None:
    prompt, made = chat("Hello there. Cut the bread. An apple.")
    assert [one for _, one in texts(prompt, made)] == [EMPTY_MIX, mix("bread"), mix("apple"), mix("bread")]


def test_passages_of_one_mix_are_answered_together() -> None:
    _, made = chat("An apple. Another apple. Cut the bread.")
    assert write(made, "Yes.\n\nNo.\n\nWell") == [("N", mix("bread"))]


def test_a_bare_prompt_goes_on_with_its_last_passage() -> None:
    prompt = CODEC.encode("Eat bread. Then an apple and")
    made = plan(prompt, prompt.text)
    assert texts(prompt, made) == [("Eat bread. ", mix("bread")), ("Then an apple and", mix("apple"))]
    assert made.follow is None


def test_a_passage_beyond_the_limit_keeps_the_mix_before_it() -> None:
    prompt = CODEC.encode("An apple. Some bread. Much cheese. An apple again. Few dates.")
    made = plan(prompt, prompt.text, max_adapters=2)
    assert [text for text, _ in texts(prompt, made)] == [
        "An apple. ",
        "Some bread. Much cheese. ",
        "An apple again. Few dates.",
    ]
    assert [one for _, one in made.spans] == [mix("apple"), mix("bread"), mix("apple")]


def test_spans_fit_the_engine_for_any_turns() -> None:
    cases = [[""], ["  "], ["apple"], ["apple.", "", "bread. bread."], ["日本語。apple。", "é."], ["\n\n", "x"]]
    for contents in cases:
        prompt = CODEC.encode_chat([Message("user", content) for content in contents])
        made = plan(prompt, contents[-1])
        made.check(len(prompt.ids))
        assert "".join(text for text, _ in texts(prompt, made)) == prompt.text


@pytest.mark.parametrize("weights", ["renormalise", "softmax"])
def test_sentences_are_weighted_as_the_request_asks(weights: WeightRule) -> None:
    routing = Routing.of({"apple": 0.7, "bread": 0.3})
    router: Any = Decided(routing)
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=name, qualified_name=f"{name}@1") for name in NAMES])
    bank.recipe_mixes, bank.together = {}, ANY
    options = RoutingOptions("auto", top_p=0.9, max_adapters=3, weights=weights, by_sentence=True)
    source = (Message("user", "An apple and a bread"),)
    request = GenerationRequest("1", "b1", EMPTY_MIX, source, Sampling(), by_sentence=options)
    made = planner(request, bank, router, CODEC, max_adapters=8)(CODEC.encode_chat(source))
    expected = select_top_p(routing.probabilities, top_p=0.9, max_adapters=3, weights=weights).on_grid()
    weighted = Mix.of({f"{part.name}@1": part.weight for part in expected.adapters})
    assert [found for _, found in made.spans] == [weighted]


def test_a_sentence_mixes_only_what_may_run_together() -> None:
    router: Any = Decided(Routing.of({"apple": 0.5, "bread": 0.3, "cheese": 0.2}))
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=name, qualified_name=f"{name}@1") for name in NAMES])
    bank.recipe_mixes, bank.together = {}, Together([("apple", "cheese")])
    options = RoutingOptions("auto", top_p=1.0, max_adapters=3, by_sentence=True)
    source = (Message("user", "An apple and a bread"),)
    request = GenerationRequest("1", "b1", EMPTY_MIX, source, Sampling(), by_sentence=options)
    made = planner(request, bank, router, CODEC, max_adapters=8)(CODEC.encode_chat(source))
    [(_, mixed)] = made.spans
    assert mixed.names == ("apple@1", "cheese@1")
    assert [one.name for one in mixed.left_out] == ["bread"], "spans say so, in the bank's names"


@pytest.mark.parametrize("by_sentence", [False, True])
def test_before_the_last_user_turn_a_mix_that_begins_there_runs_plain(by_sentence: bool) -> None:
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=name, qualified_name=f"{name}@1") for name in NAMES])
    bank.recipe_mixes, bank.together = {}, ANY
    options = RoutingOptions("auto", top_p=0.9, max_adapters=3) if by_sentence else None
    router: Any = Decided(routed("bread"))
    source = (Message("user", "Peel an apple."), Message("assistant", "Done."), Message("user", "Cut the bread."))

    def made(source: Any, prompt: Prompt) -> Plan:
        request = GenerationRequest("1", "b1", mix("bread"), source, Sampling(), salt="s", activation="turn")
        return planner(replace(request, by_sentence=options), bank, router, CODEC, max_adapters=8)(prompt)

    prompt = CODEC.encode_chat(source)
    plan, bread = made(source, prompt), mix("bread@1")
    plan.check(len(prompt.ids))
    assert plan.salt == "s"
    assert plan.follow is None, "one passage"
    history = "<|im_start|>user\nPeel an apple.<|im_end|>\n<|im_start|>assistant\nDone.<|im_end|>\n"
    (before, plain), (turn, its) = texts(prompt, plan)
    assert (before, plain) == (history, EMPTY_MIX)
    assert (before + turn, its) == (prompt.text, bread)
    bare = CODEC.encode("Cut the bread.")
    assert made("Cut the bread.", bare).spans == ((0, bread),), "a bare prompt has no turns"
