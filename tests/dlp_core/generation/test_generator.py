"""The generator over a real engine: text, log-probabilities and spans as they are sent, and every way it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.fusion.layers import install
from dlp_core.generation.generator import Generator
from dlp_core.generation.messages import Delta, Finished, TokenIds
from dlp_core.mix import EMPTY_MIX, Mix, Span
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from dlp_core.text.chat import Message
from dlp_core.text.codec import Prompt, TextCodec
from examples.tiny.model import peft_model, tiny_backbone, tiny_tokenizer

pytestmark = pytest.mark.model

CONVERSATION = (Message("user", "the user and the assistant"),)
GREEDY = Sampling(max_tokens=8, ignore_eos=True)


@pytest.fixture
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FusedEngine]:
    folder = tmp_path_factory.mktemp("generator")
    peft_model(tiny_backbone(folder / "reference"), 1).save_pretrained(folder / "a")
    model = tiny_backbone(folder / "base")
    fusion = install(model)
    residency = Residency(FolderSource({"a": folder / "a"}), fusion, slots=2)
    engine = FusedEngine(model, fusion, residency, EngineConfig(slots=2, cache_tokens=2048))
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def codec(engine: FusedEngine) -> TextCodec:
    return TextCodec(tiny_tokenizer(), context=engine.context)


async def test_the_text_is_that_of_the_engines_tokens_whatever_the_source_was(
    engine: FusedEngine, codec: TextCodec
) -> None:
    generator = Generator(engine, codec)
    prompt = codec.encode_chat(CONVERSATION)
    events = [e async for e in engine.submit(prompt.ids, EMPTY_MIX, GREEDY, request_id="engine")]
    tokens = [token for event in events for token in event.token_ids]
    text = tiny_tokenizer().decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
    for number, source in enumerate((CONVERSATION, prompt)):
        completion = await generator.complete(source, EMPTY_MIX, GREEDY, request_id=str(number))
        assert completion.text == text
        assert completion.finished == Finished("length", len(prompt.ids), 8, (Span(0, len(prompt.ids) + 8, EMPTY_MIX),))
    assert (await generator.complete(prompt.text, EMPTY_MIX, GREEDY, request_id="bare")).text != ""


async def test_it_is_told_how_much_of_a_prompt_was_in_the_cache(engine: FusedEngine, codec: TextCodec) -> None:
    generator = Generator(engine, codec)
    long = (Message("user", "the user and the assistant speak of the adapter " * 8),)
    for name, least in (("first", 0), ("again", 32)):
        completion = await generator.complete(long, EMPTY_MIX, GREEDY, request_id=name)
        assert completion.finished is not None
        assert least <= completion.finished.cached_tokens <= least * completion.finished.prompt_tokens


async def test_a_stop_string_ends_it_and_neither_it_nor_its_tokens_are_told(
    engine: FusedEngine, codec: TextCodec
) -> None:
    generator = Generator(engine, codec)
    whole = await generator.complete(CONVERSATION, EMPTY_MIX, GREEDY, request_id="whole")
    stop = whole.text[3:6]
    sampling = Sampling(max_tokens=8, ignore_eos=True, logprobs=1)
    stopped = await generator.complete(CONVERSATION, EMPTY_MIX, sampling, request_id="stopped", stop=(stop,))
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finished is not None
    assert stopped.finished.finish_reason == "stop"
    assert stopped.finished.completion_tokens <= 8
    assert stopped.finished.spans[-1].end == stopped.finished.prompt_tokens + stopped.finished.completion_tokens
    assert all(logprob.offset <= len(stopped.text) for logprob in stopped.logprobs)
    assert engine.stats().running == 0


async def test_logprobs_come_with_the_text_of_their_tokens(engine: FusedEngine, codec: TextCodec) -> None:
    sampling = Sampling(max_tokens=8, ignore_eos=True, logprobs=2)
    completion = await Generator(engine, codec).complete(CONVERSATION, EMPTY_MIX, sampling, request_id="1")
    assert 0 < len(completion.logprobs) <= 8
    assert all(len(logprob.top) == 2 for logprob in completion.logprobs)
    assert [logprob.offset for logprob in completion.logprobs] == sorted(
        logprob.offset for logprob in completion.logprobs
    )


async def test_spans_name_adapters_as_their_bank_does(engine: FusedEngine, codec: TextCodec) -> None:
    seen: list[Prompt] = []

    def plan(prompt: Prompt) -> Plan:
        seen.append(prompt)
        return Plan(((0, EMPTY_MIX), (3, Mix.of({"a": 0.5}))))

    completion = await Generator(engine, codec).complete(CONVERSATION, plan, GREEDY, request_id="1")
    assert seen == [codec.encode_chat(CONVERSATION)]
    assert completion.finished is not None
    first, second = completion.finished.spans
    assert (first.end, first.mix) == (3, EMPTY_MIX)
    assert second.mix == Mix.of({"a": 0.5})


async def test_a_span_that_begins_is_told_with_its_first_token(engine: FusedEngine, codec: TextCodec) -> None:
    prompt = codec.encode_chat(CONVERSATION)
    mix = Mix.of({"a": 0.5})
    tokens = iter(range(100))
    plan = Plan(((0, EMPTY_MIX),), lambda _: mix if next(tokens) == 3 else None)
    generated = Generator(engine, codec).generate(prompt, plan, GREEDY, request_id="1")
    async with aclosing(generated) as pieces:
        *deltas, last = [piece async for piece in pieces]
    assert isinstance(last, Finished)
    told = [delta.spans for delta in deltas if isinstance(delta, Delta) and delta.spans]
    assert [[span.mix for span in spans] for spans in told] == [[EMPTY_MIX, mix]]
    assert [(span.start, span.mix) for span in told[0]] == [(span.start, span.mix) for span in last.spans]
    assert len(prompt.ids) < told[0][1].start < told[0][1].end <= last.spans[-1].end


async def test_spans_of_the_prompt_are_told_at_once(engine: FusedEngine, codec: TextCodec) -> None:
    plan = Plan(((0, EMPTY_MIX), (3, Mix.of({"a": 0.5}))))
    generated = Generator(engine, codec).generate(CONVERSATION, plan, GREEDY, request_id="1")
    async with aclosing(generated) as pieces:
        first, *others = [piece async for piece in pieces]
    assert isinstance(first, Delta)
    assert len(first.spans) == 2
    assert all(not delta.spans for delta in others if isinstance(delta, Delta))


async def test_tokens_are_counted_as_they_arrive(engine: FusedEngine, codec: TextCodec) -> None:
    arrived: list[int] = []
    generated = Generator(engine, codec).generate(
        CONVERSATION, EMPTY_MIX, GREEDY, request_id="1", on_tokens=arrived.append
    )
    async with aclosing(generated) as pieces:
        *deltas, last = [piece async for piece in pieces]
    assert sum(arrived) == 8
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert isinstance(last, Finished)


async def test_a_completion_without_a_limit_takes_the_default_and_fits_the_context(
    engine: FusedEngine, codec: TextCodec
) -> None:
    unlimited = Sampling(ignore_eos=True)
    short = await Generator(engine, codec, default_max_tokens=3).complete(
        CONVERSATION, EMPTY_MIX, unlimited, request_id="1"
    )
    assert short.finished is not None
    assert short.finished.completion_tokens == 3
    sampling = Sampling(max_tokens=engine.context)
    with pytest.raises(PromptTooLong, match="max_tokens"):
        await Generator(engine, codec).complete(CONVERSATION, EMPTY_MIX, sampling, request_id="2")


async def test_closing_it_aborts_the_request(engine: FusedEngine, codec: TextCodec) -> None:
    sampling = Sampling(max_tokens=200, ignore_eos=True)
    async with aclosing(
        Generator(engine, codec).generate(CONVERSATION, Mix.of({"a": 1.0}), sampling, request_id="1")
    ) as pieces:
        await anext(pieces)
        assert engine.stats().pinned == 1
    assert (engine.stats().running, engine.stats().pinned) == (0, 0)


async def test_a_prompt_that_begins_the_answer_is_continued(engine: FusedEngine, codec: TextCodec) -> None:
    prompt = codec.encode_chat(CONVERSATION)
    begun = codec.continued(prompt, "the user and ")
    assert begun.ids[: len(prompt.ids)] == prompt.ids
    assert begun.ids[len(prompt.ids) :] == tiny_tokenizer().encode("the user and ", add_special_tokens=False)
    assert begun.text == prompt.text + "the user and "
    assert begun.ends[-1] == len(begun.text)
    assert begun.turns == prompt.turns


async def test_an_echoed_prompt_comes_first_with_its_log_probabilities(engine: FusedEngine, codec: TextCodec) -> None:
    generator = Generator(engine, codec)
    sampling = Sampling(max_tokens=4, ignore_eos=True, logprobs=2)
    text = "the user and é"
    plain = await generator.complete(text, EMPTY_MIX, sampling, request_id="plain")
    echoed = await generator.complete(text, EMPTY_MIX, sampling, request_id="echoed", echo=True)
    assert echoed.text == text + plain.text
    assert echoed.finished == plain.finished
    ids = codec.encode(text).ids
    assert len(echoed.logprobs) == len(ids) + len(plain.logprobs)
    assert echoed.logprobs[0].token.logprob is None
    assert b"".join(logprob.token.bytes for logprob in echoed.logprobs[: len(ids)]) == text.encode()
    for logprob, own in zip(echoed.logprobs[len(ids) :], plain.logprobs, strict=True):
        assert logprob.offset == own.offset + len(text)
        assert logprob.token.text == own.token.text
    for logprob in echoed.logprobs[: len(ids)]:
        assert echoed.text[logprob.offset :].startswith(logprob.token.text.rstrip("\ufffd"))


async def test_a_prompt_alone_is_scored_as_the_start_of_a_longer_one(engine: FusedEngine, codec: TextCodec) -> None:
    """What evaluation harnesses ask for."""
    generator, sampling = Generator(engine, codec), Sampling(logprobs=1)
    ids = codec.encode("the user and the assistant").ids
    for source in (TokenIds(tuple(ids)), "the user and the assistant"):
        scored = await generator.complete(
            source, Mix.of({"a": 1.0}), sampling, request_id="1", echo=True, prompt_only=True
        )
        assert scored.text == "the user and the assistant"
        assert len(scored.logprobs) == len(ids)
        assert scored.finished is not None
        assert (scored.finished.finish_reason, scored.finished.completion_tokens) == ("length", 0)
        assert scored.finished.spans == (Span(0, len(ids), Mix.of({"a": 1.0})),)
    assert engine.stats().running == 0


async def test_token_ids_are_a_prompt_and_have_a_text(engine: FusedEngine, codec: TextCodec) -> None:
    generator = Generator(engine, codec)
    ids = codec.encode("the user").ids
    assert await generator.decode(ids) == "the user"
    told = await generator.complete(TokenIds(tuple(ids)), EMPTY_MIX, GREEDY, request_id="1")
    assert told == await generator.complete("the user", EMPTY_MIX, GREEDY, request_id="2")
    with pytest.raises(InvalidRequest, match="outside"):
        await generator.complete(TokenIds((engine.vocabulary,)), EMPTY_MIX, GREEDY, request_id="3")
    with pytest.raises(PromptTooLong):
        await generator.decode([5] * engine.context)
