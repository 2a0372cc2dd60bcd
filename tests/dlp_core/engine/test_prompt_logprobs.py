"""The log-probabilities of a prompt: the model's own, under the request's mix, however the prompt is computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan, Sampling, TokenEvent, TokenLogprob
from dlp_core.mix import EMPTY_MIX, Mix
from tests.dlp_core.engine.test_engine import CONFIG, NAMES, assert_nothing_leaked, build, generate, prompt
from tests.support.tiny import load_peft, peft_adapter, tiny_llama

pytestmark = pytest.mark.model

LENGTH = 150
"""More than two pages, and several chunks of a small batch."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2 + seed, lora_alpha=16) for seed, name in enumerate(NAMES)}


@pytest.fixture(params=[CONFIG.batch_tokens, 16], ids=["whole", "chunks"])
async def engine(folders: dict[str, Path], request: pytest.FixtureRequest) -> AsyncIterator[FusedEngine]:
    engine = await build(folders, replace(CONFIG, batch_tokens=request.param))
    yield engine
    await engine.stop()


async def events(engine: FusedEngine, name: str, ids: list[int], mix: Mix | Plan) -> list[TokenEvent]:
    sampling = Sampling(max_tokens=4, logprobs=2, ignore_eos=True)
    return [event async for event in engine.submit(ids, mix, sampling, request_id=name, prompt_logprobs=3)]


async def scores(engine: FusedEngine, name: str, ids: list[int], mix: Mix | Plan) -> list[TokenLogprob | None]:
    heard = await events(engine, name, ids, mix)
    assert sum(len(event.token_ids) for event in heard) == 4
    assert not any(event.prompt_logprobs for event in heard[1:])
    return list(heard[0].prompt_logprobs)


def expected(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return logprobs[:-1]


def assert_scores(found: list[TokenLogprob | None], logprobs: torch.Tensor, ids: list[int]) -> None:
    assert found[0] is None
    assert len(found) == len(ids)
    for score, row, token in zip(found[1:], logprobs, ids[1:], strict=True):
        assert score is not None
        assert score.token_id == token
        assert score.logprob == pytest.approx(float(row[token]), abs=2e-4)
        assert [value for _, value in score.top] == pytest.approx(row.topk(3).values.tolist(), abs=2e-4)


async def test_they_are_those_of_the_plain_model_and_of_peft(engine: FusedEngine, folders: dict[str, Path]) -> None:
    ids = prompt(3, LENGTH)
    assert_scores(await scores(engine, "p", ids, EMPTY_MIX), expected(tiny_llama(), ids), ids)
    name = NAMES[1]
    assert_scores(await scores(engine, "a", ids, Mix.of({name: 1.0})), expected(load_peft(folders[name]), ids), ids)
    assert_nothing_leaked(engine)


async def test_a_prompt_in_the_cache_is_scored_all_the_same(engine: FusedEngine) -> None:
    ids = prompt(4, LENGTH)
    first = await scores(engine, "a", ids, EMPTY_MIX)
    shared = engine.stats().shared_tokens
    again = await scores(engine, "b", ids, EMPTY_MIX)
    assert engine.stats().shared_tokens == shared
    assert all(
        one is other or (one and other and one.logprob == pytest.approx(other.logprob, abs=1e-4))
        for one, other in zip(first, again, strict=True)
    )
    await generate(engine, "c", ids, EMPTY_MIX)
    assert engine.stats().shared_tokens > shared


async def test_they_are_the_same_beside_other_requests(engine: FusedEngine) -> None:
    ids, mix = prompt(5, LENGTH), Mix.of({NAMES[0]: 0.5, NAMES[2]: 0.5})
    alone = await scores(engine, "a", ids, mix)
    together, *_ = await asyncio.gather(
        scores(engine, "b", ids, mix),
        *(generate(engine, f"o{seed}", prompt(seed, 20 + seed), EMPTY_MIX, 12) for seed in range(6)),
        scores(engine, "c", prompt(6, 40), EMPTY_MIX),
    )
    for one, other in zip(alone[1:], together[1:], strict=True):
        assert one is not None
        assert other is not None
        assert one.logprob == pytest.approx(other.logprob, abs=2e-4)
    assert_nothing_leaked(engine)


async def test_the_tokens_are_those_without_scores(engine: FusedEngine) -> None:
    ids, mix = prompt(7, 60), Mix.of({NAMES[0]: 1.0})
    plain, _ = await generate(engine, "p", ids, mix, 4, ignore_eos=True)
    assert [token for event in await events(engine, "s", ids, mix) for token in event.token_ids] == plain


async def test_the_scores_survive_a_preemption(folders: dict[str, Path]) -> None:
    engine = await build(folders, replace(CONFIG, cache_tokens=256, batch_tokens=64))
    try:
        ids = prompt(8, 100)
        found, *_ = await asyncio.gather(
            scores(engine, "a", ids, EMPTY_MIX),
            *(generate(engine, f"o{seed}", prompt(seed, 60), EMPTY_MIX, 60, ignore_eos=True) for seed in range(5)),
        )
        assert_scores(found, expected(tiny_llama(), ids), ids)
    finally:
        await engine.stop()
