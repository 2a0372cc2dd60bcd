"""Which sentence gets which mix: in the prompt, and while the completion is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from dlp_core.text.chat import Message
from dlp_core.text.codec import Prompt, TextCodec
from examples.tiny.model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CODEC = TextCodec(TOKENIZER, context=4096)
NAMES = ("apple", "bread", "cheese", "dates")


class WordRouter:
    """Routes by the last of NAMES that a text has, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        return [self._first(texts) for texts in choices]

    def _first(self, texts: Sequence[str]) -> Routing:
        for text in texts:
            self.asked.append(text)
            if (routing := self._route(text)).fits:
                return routing
        return self._route(texts[0])

    def _route(self, text: str) -> Routing:
        found = max(NAMES, key=text.rfind)
        fits = found in text
        return Routing.of({name: float(fits and name == found) for name in NAMES}, margin=9.0 if fits else -9.0)


def mix(name: str) -> Mix:
    return Mix.of({name: 1.0})


def plan(prompt: Prompt, *request: str, max_adapters: int = 8) -> tuple[Plan, WordRouter]:
    router = WordRouter()
    return SentenceMixes(router.route_first, Routing.mix, max_adapters=max_adapters).plan(
        prompt, request, CODEC.stream(prompt)
    ), router


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


def test_each_sentence_of_a_chat_has_its_mix() -> None:
    turns = [Message("system", "Be brief."), Message("user", "Peel an apple. Then cut the bread.")]
    prompt = CODEC.encode_chat(turns)
    made, router = plan(prompt, turns[1].content)
    assert texts(prompt, made) == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", EMPTY_MIX),
        ("Peel an apple. ", mix("apple")),
        ("Then cut the bread.<|im_end|>\n<|im_start|>assistant\n", mix("bread")),
    ]
    assert router.asked == ["Be brief.", "Peel an apple. ", "Then cut the bread.", turns[1].content]


def test_a_completion_is_routed_again_at_the_first_token_of_each_further_sentence() -> None:
    prompt = CODEC.encode_chat([Message("user", "apple")])
    made, router = plan(prompt, "apple")
    router.asked.clear()
    changes = write(made, "I like cheese. 3.5 of it. Now dates! End")
    assert [one for _, one in changes] == [mix("cheese"), mix("cheese"), mix("dates")]
    assert [text.strip()[0] for text, _ in changes] == ["3", "N", "E"]
    assert router.asked[0].startswith("apple\nI like cheese. 3")
    assert write(plan(prompt, "apple")[0], "one sentence only, with cheese.") == []


def test_a_bare_prompt_goes_on_with_its_last_sentence() -> None:
    prompt = CODEC.encode("Eat bread. Then an apple and")
    made, _ = plan(prompt, prompt.text)
    assert texts(prompt, made) == [("Eat bread. ", mix("bread")), ("Then an apple and", mix("apple"))]
    assert write(made, " more cheese. Fine") == [("F", mix("cheese"))]


def test_a_sentence_beyond_the_limit_keeps_the_mix_before_it() -> None:
    prompt = CODEC.encode("An apple. Some bread. Much cheese. An apple again. Few dates.")
    made, _ = plan(prompt, prompt.text, max_adapters=2)
    assert [one for _, one in made.spans] == [mix("apple"), mix("bread"), mix("apple")]
    assert [text for text, _ in texts(prompt, made)] == [
        "An apple. ",
        "Some bread. Much cheese. ",
        "An apple again. Few dates.",
    ]


def test_spans_fit_the_engine_for_any_turns() -> None:
    cases = [[""], ["  "], ["apple"], ["apple.", "", "bread. bread."], ["日本語。apple。", "é."], ["\n\n", "x"]]
    for contents in cases:
        prompt = CODEC.encode_chat([Message("user", content) for content in contents])
        made, _ = plan(prompt, contents[-1])
        made.check(len(prompt.ids))
        assert "".join(text for text, _ in texts(prompt, made)) == prompt.text


@pytest.mark.parametrize("weights", ["renormalise", "softmax"])
def test_sentences_are_weighted_as_the_request_asks(weights: WeightRule) -> None:
    class Undecided(WordRouter):
        def _route(self, text: str) -> Routing:
            return routing

    routing = Routing.of({"apple": 0.7, "bread": 0.3})
    router: Any = Undecided()
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=name, qualified_name=f"{name}@1") for name in NAMES])
    options = RoutingOptions("auto", top_p=0.9, max_adapters=3, weights=weights, by_sentence=True)
    source = (Message("user", "An apple. A bread."),)
    request = GenerationRequest("1", "b1", EMPTY_MIX, source, Sampling(), by_sentence=options)
    made = planner(request, bank, router, CODEC, max_adapters=8)(CODEC.encode_chat(source))
    expected = select_top_p(routing.probabilities, top_p=0.9, max_adapters=3, weights=weights).on_grid()
    weighted = Mix.of({f"{part.name}@1": part.weight for part in expected.adapters})
    assert [found for _, found in made.spans] == [weighted]
    assert {found for _, found in write(made, " One. Two. Three.")} == {weighted}


@pytest.mark.parametrize("by_sentence", [False, True])
def test_before_the_last_user_turn_a_mix_that_begins_there_runs_plain(by_sentence: bool) -> None:
    bank: Any = SimpleNamespace(adapters=[SimpleNamespace(name=name, qualified_name=f"{name}@1") for name in NAMES])
    options = RoutingOptions("auto", top_p=0.9, max_adapters=3) if by_sentence else None
    router: Any = WordRouter()
    source = (Message("user", "Peel an apple."), Message("assistant", "Done."), Message("user", "Cut the bread."))

    def made(source: Any, prompt: Prompt) -> Plan:
        request = GenerationRequest("1", "b1", mix("bread"), source, Sampling(), salt="s", activation="turn")
        return planner(replace(request, by_sentence=options), bank, router, CODEC, max_adapters=8)(prompt)

    prompt = CODEC.encode_chat(source)
    plan, bread = made(source, prompt), mix("bread@1")
    plan.check(len(prompt.ids))
    assert plan.salt == "s"
    assert (plan.follow is not None) == by_sentence
    history = "<|im_start|>user\nPeel an apple.<|im_end|>\n<|im_start|>assistant\nDone.<|im_end|>\n"
    opening = "<|im_start|>user\n"  # a template's words go with the sentence before
    (before, plain), (turn, its) = texts(prompt, plan)
    assert (before, plain) == (history + opening * by_sentence, EMPTY_MIX)
    assert (before + turn, its) == (prompt.text, bread)
    bare = CODEC.encode("Cut the bread.")
    assert made("Cut the bread.", bare).spans == ((0, bread),), "a bare prompt has no turns"
