"""The engine: mixes side by side in one batch, and every way a request can end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling, TokenEvent
from dlp_core.errors import (
    EngineFailed,
    EngineFull,
    InvalidRequest,
    PromptTooLong,
    RequestAborted,
    StepFailed,
    UnknownModel,
)
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.support.tiny import VOCAB, load_peft, peft_adapter, tiny_llama
from tests.support.waiting import HANG_S, async_wait_for

pytestmark = pytest.mark.model

NAMES = tuple("abcdef")
CONFIG = EngineConfig(slots=3, max_requests=32, page_tokens=8, cache_tokens=1024, batch_tokens=48)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2 + seed, lora_alpha=16) for seed, name in enumerate(NAMES)}


async def build(folders: dict[str, Path], config: EngineConfig = CONFIG) -> FusedEngine:
    model = tiny_llama()
    fusion = install(model)
    engine = FusedEngine(model, fusion, Residency(FolderSource(folders), fusion, config.slots), config)
    await engine.start()
    return engine


@pytest.fixture
async def engine(folders: dict[str, Path]) -> AsyncIterator[FusedEngine]:
    engine = await build(folders)
    yield engine
    await engine.stop()


def prompt(seed: int, length: int) -> list[int]:
    return [3 + (seed * 31 + 7 * i) % (VOCAB - 3) for i in range(length)]


async def generate(
    engine: FusedEngine, request_id: str, ids: list[int], mix: Mix, max_tokens: int = 16, **sampling: Any
) -> tuple[list[int], str | None]:
    tokens: list[int] = []
    reason = None
    async for event in engine.submit(ids, mix, Sampling(max_tokens, **sampling), request_id=request_id):
        tokens += event.token_ids
        reason = event.finish_reason
    return tokens, reason


def assert_nothing_leaked(engine: FusedEngine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pinned, stats.cache_free) == (0, 0, 0, pytest.approx(1.0))
    assert (stats.tokens_running, stats.tokens_waiting, stats.adapter_demand, stats.adapter_wait_s) == (0, 0, 0, 0)
    batching = engine._batching
    assert batching._requests == batching._cancelling == batching.output_router.result_handlers == {}
    assert batching.output_router.output_queue.empty()


JOBS = [
    (prompt(i, 3 + 11 * i), EMPTY_MIX if i % 4 == 0 else Mix.of({NAMES[i % 6]: 0.7, NAMES[(i + 2) % 6]: 0.3}))
    for i in range(12)
]


async def test_tokens_are_the_same_alone_and_in_any_batch(engine: FusedEngine) -> None:
    """Twelve prompts from 3 to 124 tokens (chunked prefill), mixes of two of six adapters over three slots."""
    alone = [await generate(engine, f"alone-{i}", *job) for i, job in enumerate(JOBS)]
    together = await asyncio.gather(*(generate(engine, f"batch-{i}", *job) for i, job in enumerate(JOBS)))
    assert together == alone
    assert len({tuple(tokens) for tokens, _ in alone}) > 6, "the mixes must matter for this test to mean anything"
    assert_nothing_leaked(engine)


async def test_stats_distinguish_running_tokens_from_waiting_ones(engine: FusedEngine) -> None:
    """Three slots are in use by the first request; the second waits for one."""
    first = engine.submit(
        prompt(1, 20), Mix.of(dict.fromkeys("abc", 0.3)), Sampling(800, ignore_eos=True), request_id="first"
    )
    assert (await anext(first)).token_ids
    with engine._batching.pause():
        began = time.perf_counter()
        second = asyncio.create_task(generate(engine, "second", prompt(2, 30), Mix.of({"d": 1.0}), max_tokens=7))
        await async_wait_for(lambda: engine.stats().adapter_wait_s > 0.03, "wait")
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (1, 1)
        assert 20 <= stats.tokens_running <= 820
        assert stats.tokens_running / 1024 <= 1 - stats.cache_free + 1e-6, "the cache holds them, in whole pages"
        assert stats.tokens_waiting == 30 + 7
        assert stats.adapter_demand == 4 / 3
        assert stats.adapter_wait_s < time.perf_counter() - began
    await first.aclose()  # type: ignore[attr-defined]
    await second
    assert_nothing_leaked(engine)


async def test_an_unread_finished_request_does_not_count_as_waiting(engine: FusedEngine) -> None:
    stream = engine.submit(prompt(1, 20), EMPTY_MIX, Sampling(9, ignore_eos=True), request_id="unread")
    assert (await anext(stream)).token_ids
    await async_wait_for(lambda: not engine.stats().tokens_running, "end")
    assert engine.stats().tokens_waiting == 0
    assert [event.finish_reason async for event in stream][-1] == "length"
    assert_nothing_leaked(engine)


async def test_tokens_equal_those_of_peft_and_of_the_plain_model(engine: FusedEngine, folders: dict[str, Path]) -> None:
    ids = prompt(5, 20)
    oracles = {EMPTY_MIX: tiny_llama()} | {Mix.of({name: 1.0}): load_peft(folders[name]) for name in NAMES[:3]}
    found = await asyncio.gather(*(generate(engine, str(mix), ids, mix) for mix in oracles))
    for (tokens, _), oracle in zip(found, oracles.values(), strict=True):
        expected = oracle.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 20), max_new_tokens=16, do_sample=False,
            pad_token_id=0,
        )[0, 20:].tolist()  # fmt: skip
        assert tokens == [token for token in expected if token != 2]


async def test_equal_prompts_under_different_mixes_share_no_blocks(engine: FusedEngine) -> None:
    """The same 64 tokens, eight full blocks, one mix after the other and both at once."""
    ids = prompt(1, 64)
    mixes = [Mix.of({"a": 1.0}), Mix.of({"b": 1.0}), Mix.of({"a": 0.5}), EMPTY_MIX]
    fresh = []
    for i, mix in enumerate(mixes):
        fresh.append(await generate(engine, f"one-{i}", ids, mix))
    again = await asyncio.gather(*(generate(engine, f"two-{i}", ids, mix) for i, mix in enumerate(reversed(mixes))))
    assert again[::-1] == fresh
    assert len({tuple(tokens) for tokens, _ in fresh}) == 4


async def test_a_tiny_cache_preempts_without_changing_tokens(folders: dict[str, Path]) -> None:
    """64 cache tokens for requests that need 36 each: the scheduler must preempt some and resume them."""
    engine = await build(folders, EngineConfig(slots=3, page_tokens=4, cache_tokens=64, batch_tokens=48))
    try:
        jobs = [(prompt(i, 12), Mix.of({NAMES[i % 3]: 1.0})) for i in range(6)]
        alone = [await generate(engine, f"a{i}", *job, max_tokens=24, ignore_eos=True) for i, job in enumerate(jobs)]
        async with asyncio.timeout(HANG_S):
            together = await asyncio.gather(
                *(generate(engine, f"b{i}", *job, max_tokens=24, ignore_eos=True) for i, job in enumerate(jobs))
            )
        assert together == alone
        assert all(len(tokens) == 24 for tokens, _ in alone)
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()


async def test_greedy_requests_stay_greedy_beside_sampled_ones(engine: FusedEngine) -> None:
    alone = [await generate(engine, f"alone-{i}", *job) for i, job in enumerate(JOBS)]
    mixed = await asyncio.gather(
        *(generate(engine, f"m{i}", *job, temperature=0.0 if i % 2 else 1.5) for i, job in enumerate(JOBS))
    )
    assert [mixed[i] == alone[i] for i in range(1, 12, 2)] == [True] * 6
    assert any(mixed[i] != alone[i] for i in range(0, 12, 2)), "sampling at temperature 1.5 must show"


async def test_top_k_one_is_greedy_at_any_temperature(engine: FusedEngine) -> None:
    ids, mix = JOBS[3]
    assert await generate(engine, "x", ids, mix, temperature=2.0, top_k=1) == await generate(engine, "y", ids, mix)


async def test_events_end_with_a_reason_and_count_every_token(engine: FusedEngine) -> None:
    events = [
        event
        async for event in engine.submit(
            prompt(2, 9), EMPTY_MIX, Sampling(max_tokens=7, ignore_eos=True), request_id="r"
        )
    ]
    assert sum(len(event.token_ids) for event in events) == 7
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish_reason == "length"


async def test_the_end_of_sequence_token_stops_and_is_not_sent(engine: FusedEngine) -> None:
    """Token 2 is the end: a prompt whose free-running continuation contains it must stop there."""
    for seed in range(40):
        free, _ = await generate(engine, f"free-{seed}", prompt(seed, 6), EMPTY_MIX, 40, ignore_eos=True)
        if 2 in free:
            stopped = await generate(engine, f"stop-{seed}", prompt(seed, 6), EMPTY_MIX, 40)
            assert stopped == (free[: free.index(2)], "stop")
            return
    pytest.fail("no prompt produced the end-of-sequence token")


async def first_event(stream: AsyncIterator[TokenEvent]) -> TokenEvent:
    return await anext(stream)


async def test_closing_a_stream_frees_everything_at_once(engine: FusedEngine) -> None:
    other = asyncio.create_task(generate(engine, "other", *JOBS[5], max_tokens=60))
    stream = engine.submit(*JOBS[1], Sampling(max_tokens=900, ignore_eos=True), request_id="gone")
    await first_event(stream)
    await stream.aclose()
    assert "gone" not in engine._batching._requests
    tokens, _ = await other
    assert tokens == (await generate(engine, "again", *JOBS[5], max_tokens=60))[0]
    assert_nothing_leaked(engine)


async def test_a_cancelled_consumer_frees_everything(engine: FusedEngine) -> None:
    tasks = [
        asyncio.create_task(generate(engine, f"c{i}", *job, max_tokens=800, ignore_eos=True))
        for i, job in enumerate(JOBS)
    ]
    await async_wait_for(lambda: engine.stats().tokens_running, "step")
    for task in tasks:
        task.cancel()
    assert {type(result) for result in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
    assert_nothing_leaked(engine)


async def test_abort_raises_a_typed_error_in_the_stream(engine: FusedEngine) -> None:
    stream = engine.submit(*JOBS[1], Sampling(max_tokens=900, ignore_eos=True), request_id="r")
    await first_event(stream)
    engine.abort("r")
    engine.abort("never seen")
    with pytest.raises(RequestAborted):
        async for _ in stream:
            pass
    assert_nothing_leaked(engine)


async def test_a_full_engine_is_reported_with_a_retry_time(folders: dict[str, Path]) -> None:
    engine = await build(folders, EngineConfig(slots=3, max_requests=2, cache_tokens=1024, batch_tokens=48))
    try:
        running = [
            asyncio.create_task(generate(engine, f"r{i}", prompt(i, 4), EMPTY_MIX, 30, ignore_eos=True))
            for i in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(EngineFull) as caught:
            await generate(engine, "third", prompt(3, 4), EMPTY_MIX)
        assert caught.value.retry_after == 1.0
        await asyncio.gather(*running)
        await generate(engine, "third", prompt(3, 4), EMPTY_MIX)
    finally:
        await engine.stop()


async def test_a_failing_step_ends_every_request_with_a_typed_error(
    engine: FusedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.check_health()

    def explode(*_: object) -> None:
        raise RuntimeError("device lost")

    tasks = [asyncio.create_task(generate(engine, f"r{i}", *job, max_tokens=800)) for i, job in enumerate(JOBS)]
    await async_wait_for(lambda: engine.stats().tokens_running, "step")
    monkeypatch.setattr(engine._batching._fusion, "batch", explode)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = {type(result) for result in results if not isinstance(result, tuple)}
    assert StepFailed in failures <= {StepFailed, EngineFailed}
    assert any("device lost" in str(result) for result in results)
    with pytest.raises(EngineFailed, match="replace this replica"):
        engine.check_health()
    with pytest.raises(EngineFailed):
        await generate(engine, "late", *JOBS[0])
    assert_nothing_leaked(engine)


async def test_a_stalled_step_is_unhealthy(folders: dict[str, Path]) -> None:
    engine = await build(folders)
    try:
        stream = engine.submit(*JOBS[1], Sampling(max_tokens=800, ignore_eos=True), request_id="r")
        await first_event(stream)
        engine.check_health()
        with engine._batching.pause():
            engine._batching.last_step -= 61
            with pytest.raises(EngineFailed, match="no step finished for 61 s with 1 requests"):
                engine.check_health()
        await stream.aclose()
        engine._batching.last_step -= 61
        engine.check_health()  # an idle engine makes no progress
    finally:
        await engine.stop()


async def test_an_engine_that_cannot_start_says_why(folders: dict[str, Path]) -> None:
    with pytest.raises(EngineFailed, match="did not start: Memory footprint"):
        await build(folders, EngineConfig(slots=3, cache_tokens=2**40))


async def test_stopping_ends_requests_in_flight(folders: dict[str, Path]) -> None:
    engine = await build(folders)
    task = asyncio.create_task(generate(engine, "r", *JOBS[1], max_tokens=900, ignore_eos=True))
    await async_wait_for(lambda: engine.stats().tokens_running, "step")
    await engine.stop()
    with pytest.raises(EngineFailed):
        await task
    assert_nothing_leaked(engine)


async def test_bad_requests_name_the_field_and_leak_nothing(engine: FusedEngine) -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        await generate(engine, "r", [], EMPTY_MIX)
    with pytest.raises(InvalidRequest, match="token ids outside"):
        await generate(engine, "r", [VOCAB], EMPTY_MIX)
    with pytest.raises(PromptTooLong, match="at most 1024"):
        await generate(engine, "r", prompt(0, 1000), EMPTY_MIX, 25)
    with pytest.raises(UnknownModel):
        await generate(engine, "r", prompt(0, 5), Mix.of({"nobody": 1.0}))
    with pytest.raises(InvalidRequest, match="4 adapters"):
        await generate(engine, "r", prompt(0, 5), Mix.of(dict.fromkeys("abcd", 0.25)))
    for field, value in [("max_tokens", 0), ("temperature", float("nan")), ("top_p", 0.0), ("top_k", -1)]:
        with pytest.raises(InvalidRequest) as caught:
            Sampling(**({"max_tokens": 1} | {field: value}))
        assert caught.value.param == field
    await generate(engine, "full", prompt(0, 1000), EMPTY_MIX, 24)
    assert_nothing_leaked(engine)


async def test_a_request_id_cannot_be_in_use_twice(engine: FusedEngine) -> None:
    stream = engine.submit(*JOBS[1], Sampling(max_tokens=900, ignore_eos=True), request_id="r")
    await first_event(stream)
    with pytest.raises(InvalidRequest, match="in use"):
        await generate(engine, "r", *JOBS[2])
    await stream.aclose()
    await generate(engine, "r", *JOBS[2])


@pytest.mark.parametrize("field", ["slots", "max_requests", "cache_tokens", "batch_tokens", "page_tokens"])
def test_engine_settings_have_bounds(field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        EngineConfig(**{field: 0})
