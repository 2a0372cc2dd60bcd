"""The contract of the engine over vLLM: events, errors, aborts, and that nothing leaks. What it says is exact in
test_exactness.py.

These tests need vLLM, which cannot share an environment with this project's transformers: docs/vllm.md says how to run
them.
"""

from __future__ import annotations

import asyncio

import pytest
import torch

from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import AdapterRefused, InvalidRequest, PromptTooLong, RequestAborted, UnknownModel
from dlp_core.mix import EMPTY_MIX, Mix
from examples.tiny.model import tiny_tokenizer
from tests.support.vllm_engine import (
    CONFIG,
    TARGETS,
    Reference,
    assert_nothing_leaked,
    generate,
    prompt,
    tokens_of,
)

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]


async def test_an_end_of_sequence_is_not_told(engine: VllmEngine) -> None:
    events = await generate(engine, "e", prompt(1), EMPTY_MIX, ignore_eos=False, response_format='{"const": 1}')
    assert events[-1].finish_reason == "stop"
    assert 2 not in tokens_of(events)
    assert tiny_tokenizer().decode(tokens_of(events)) == "1"


async def test_log_probabilities_are_the_models(engine: VllmEngine, reference: Reference) -> None:
    ids, settings = prompt(4), Sampling(max_tokens=4, logprobs=2, ignore_eos=True)
    mix = Mix.of({"a": 1.0})
    events = [e async for e in engine.submit(ids, mix, settings, request_id="l", prompt_logprobs=2)]
    said = tokens_of(events)
    with torch.no_grad():
        rows = reference.model(mix)(torch.tensor([ids + said])).logits[0].log_softmax(-1)
    found = [*events[0].prompt_logprobs, *(logprob for event in events for logprob in event.logprobs)]
    assert found[0] is None
    for position, logprob in enumerate(found[1:]):
        assert logprob is not None
        assert logprob.token_id == (ids + said)[position + 1]
        assert logprob.logprob == pytest.approx(float(rows[position][logprob.token_id]), abs=1e-3)


@pytest.mark.parametrize("repeats", [3, 9], ids=["one chunk", "two chunks"])
async def test_a_seed_repeats(engine: VllmEngine, repeats: int) -> None:
    """Alone and beside others, whether vLLM draws before the prompt is all there or not."""
    ids, draw = prompt(5, repeats), {"temperature": 1.2, "seed": 5}
    assert (len(ids) > CONFIG.batch_tokens) == (repeats == 9)
    one = tokens_of(await generate(engine, "d1", ids, EMPTY_MIX, **draw))
    others = [generate(engine, f"o{number}", prompt(number, 9), Mix.of({"a": 1.0}), **draw) for number in range(3)]
    both = await asyncio.gather(generate(engine, "d2", ids, EMPTY_MIX, **draw), *others)
    assert tokens_of(both[0]) == one
    assert tokens_of(await generate(engine, "d4", ids, EMPTY_MIX, temperature=1.2, seed=6)) != one


async def test_abort_raises_a_typed_error_and_frees_everything(engine: VllmEngine) -> None:
    stream = engine.submit(prompt(1), Mix.of({"a": 1.0}), Sampling(500, ignore_eos=True), request_id="x")
    await anext(stream)
    engine.abort("x")
    with pytest.raises(RequestAborted):
        async for _ in stream:
            pass
    engine.abort("nobody")
    assert_nothing_leaked(engine)


async def test_closing_a_stream_frees_everything(engine: VllmEngine) -> None:
    stream = engine.submit(prompt(1), Mix.of({"a": 1.0}), Sampling(500, ignore_eos=True), request_id="y")
    await anext(stream)
    await stream.aclose()
    assert_nothing_leaked(engine)


async def test_what_is_not_served_is_refused_by_name(engine: VllmEngine) -> None:
    with pytest.raises(AdapterRefused, match="embed"):
        await generate(engine, "n", prompt(1), Mix.of({"embedding": 1.0}))
    with pytest.raises(UnknownModel):
        await generate(engine, "n", prompt(1), Mix.of({"nobody": 1.0}))
    with pytest.raises(InvalidRequest, match="4 adapters"):
        await generate(engine, "n", prompt(1), Mix.of(dict.fromkeys([*TARGETS, "embedding"], 0.25)))
    with pytest.raises(PromptTooLong):
        await generate(engine, "n", prompt(1), EMPTY_MIX, max_tokens=4096)
    with pytest.raises(InvalidRequest, match="presence_penalty"):
        await generate(engine, "n", prompt(1), Plan(((0, EMPTY_MIX),), lambda token: None), presence_penalty=1.0)
    assert_nothing_leaked(engine)


async def test_adapters_come_and_go_while_others_generate(engine: VllmEngine, reference: Reference) -> None:
    """More adapters than slots would hold with two of three kept."""
    await engine.keep(["a"])
    said = await asyncio.gather(
        *(generate(engine, f"v{i}", prompt(i), Mix.of({"bc"[i % 2]: 1.0}), max_tokens=8) for i in range(8))
    )
    for number, events in enumerate(said):
        assert tokens_of(events) == reference.tokens(prompt(number), Mix.of({"bc"[number % 2]: 1.0}), 8)
    await engine.keep([])
    assert_nothing_leaked(engine)
