"""How a request picks its tokens, alone and in a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling, TokenLogprob
from dlp_core.mix import EMPTY_MIX, Mix
from tests.dlp_core.engine.test_engine import JOBS, NAMES, assert_nothing_leaked, build, generate, prompt
from tests.support.tiny import peft_adapter, tiny_llama

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2 + seed, lora_alpha=16) for seed, name in enumerate(NAMES)}


@pytest.fixture
async def engine(folders: dict[str, Path]) -> AsyncIterator[FusedEngine]:
    engine = await build(folders)
    yield engine
    await engine.stop()


async def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(engine: FusedEngine) -> None:
    draw: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95, "ignore_eos": True}
    alone = [await generate(engine, f"a{i}", *job, seed=i, **draw) for i, job in enumerate(JOBS)]
    together = await asyncio.gather(
        *(generate(engine, f"b{i}", *job, seed=i, **draw) for i, job in enumerate(JOBS)),
        *(generate(engine, f"c{i}", *job) for i, job in enumerate(JOBS)),
    )
    assert together[: len(JOBS)] == alone
    other = [await generate(engine, f"d{i}", *job, seed=i + 100, **draw) for i, job in enumerate(JOBS[:4])]
    assert all(one != another for one, another in zip(alone, other, strict=False))
    assert_nothing_leaked(engine)


async def test_without_a_seed_draws_differ(engine: FusedEngine) -> None:
    job = JOBS[3]
    drawn = [await generate(engine, f"r{i}", *job, temperature=1.5, ignore_eos=True) for i in range(4)]
    assert len({tuple(tokens) for tokens, _ in drawn}) > 1


async def test_truncation_to_one_token_is_greedy(engine: FusedEngine) -> None:
    job = JOBS[5]
    greedy = await generate(engine, "g", *job)
    assert await generate(engine, "p", *job, temperature=2.0, top_p=1e-6) == greedy
    assert await generate(engine, "k", *job, temperature=2.0, top_k=1) == greedy
    assert await generate(engine, "t", *job, temperature=1e-4) == greedy


async def test_the_repetition_penalty_equals_that_of_transformers(engine: FusedEngine) -> None:
    ids = prompt(7, 12)
    tokens, _ = await generate(engine, "r", ids, EMPTY_MIX, 20, repetition_penalty=1.8, ignore_eos=True)
    expected = tiny_llama().generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 12), max_new_tokens=20, min_new_tokens=20,
        do_sample=False, repetition_penalty=1.8, pad_token_id=0,
    )[0, 12:].tolist()  # fmt: skip
    plain, _ = await generate(engine, "p", ids, EMPTY_MIX, 20, ignore_eos=True)
    assert tokens == expected or 2 in tokens  # transformers suppresses the end token, the engine ignores it
    assert tokens != plain


async def test_tokens_that_occurred_are_penalised_as_openai_defines_it(engine: FusedEngine) -> None:
    ids = prompt(9, 12)
    presence, frequency = 1.5, 0.7
    tokens, _ = await generate(
        engine, "r", ids, EMPTY_MIX, 24, presence_penalty=presence, frequency_penalty=frequency, ignore_eos=True
    )
    model, expected = tiny_llama(), list[int]()
    for _ in range(24):
        with torch.no_grad():
            scores = model(torch.tensor([ids + expected])).logits[0, -1]
        for token in set(expected):
            scores[token] -= presence + frequency * expected.count(token)
        expected.append(int(scores.argmax()))
    assert tokens == expected
    plain, _ = await generate(engine, "p", ids, EMPTY_MIX, 24, ignore_eos=True)
    assert tokens != plain
    fond, _ = await generate(engine, "f", ids, EMPTY_MIX, 24, presence_penalty=-2.0, frequency_penalty=-2.0)
    assert len(set(fond)) < len(set(tokens))
    assert_nothing_leaked(engine)


async def test_min_tokens_delay_the_end_of_sequence(engine: FusedEngine) -> None:
    for seed in range(40):
        tokens, reason = await generate(engine, f"f{seed}", prompt(seed, 6), EMPTY_MIX, 40)
        if reason == "stop" and len(tokens) < 20:
            held, _ = await generate(engine, f"h{seed}", prompt(seed, 6), EMPTY_MIX, 40, min_tokens=25)
            assert held[: len(tokens)] == tokens
            assert len(held) >= 25
            assert 2 not in held
            return
    pytest.fail("no prompt stopped early")


async def test_log_probabilities_equal_the_models(engine: FusedEngine) -> None:
    ids = prompt(4, 10)
    found: list[TokenLogprob] = []
    tokens: list[int] = []
    sampling = Sampling(8, temperature=0.7, seed=3, repetition_penalty=1.2, logprobs=4, ignore_eos=True)
    beside = asyncio.gather(*(generate(engine, f"b{i}", *job) for i, job in enumerate(JOBS)))
    async for event in engine.submit(ids, EMPTY_MIX, sampling, request_id="r"):
        assert len(event.logprobs) == len(event.token_ids)
        found += event.logprobs
        tokens += event.token_ids
    await beside
    assert [one.token_id for one in found] == tokens
    with torch.no_grad():
        expected = tiny_llama()(torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
    for position, one in enumerate(found):
        row = expected[len(ids) - 1 + position]
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-4)
        assert [token for token, _ in one.top] == row.topk(4).indices.tolist()
    assert_nothing_leaked(engine)


async def test_a_request_without_logprobs_gets_none(engine: FusedEngine) -> None:
    async for event in engine.submit(prompt(1, 5), Mix.of({"a": 1.0}), Sampling(4), request_id="r"):
        assert event.logprobs == ()
