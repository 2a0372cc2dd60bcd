"""Mixes that change inside a request: in the prompt, at chosen completion tokens, and to adapters not yet loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import EngineFailed, InvalidRequest
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment
from dlp_core.mix import EMPTY_MIX, Mix, Span
from tests.dlp_core.engine.test_engine import NAMES, assert_nothing_leaked, build, prompt
from tests.support.followers import every
from tests.support.tiny import load_peft, peft_adapter, tiny_llama
from tests.support.waiting import HANG_S, async_wait_for

pytestmark = pytest.mark.model

A, B, C = (Mix.of({name: 1.0}) for name in "abc")
AB = Mix.of({"a": 0.7, "b": 0.3})
TINY = EngineConfig(slots=2, page_tokens=4, cache_tokens=96, batch_tokens=24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2 + seed, lora_alpha=16) for seed, name in enumerate(NAMES)}


@pytest.fixture
async def engine(folders: dict[str, Path]) -> AsyncIterator[FusedEngine]:
    engine = await build(folders)
    yield engine
    await engine.stop()


async def run(
    engine: FusedEngine, request_id: str, ids: list[int], plan: Plan, max_tokens: int = 24
) -> tuple[list[int], tuple[Span, ...]]:
    tokens: list[int] = []
    async for event in engine.submit(ids, plan, Sampling(max_tokens, ignore_eos=True), request_id=request_id):
        tokens += event.token_ids
        spans = event.spans
    return tokens, spans


@torch.no_grad()
def by_hand(folders: dict[str, Path], ids: list[int], spans: tuple[Span, ...]) -> list[int]:
    """Greedy tokens of the model itself, token by token, under the spans of a reply."""
    model = tiny_llama()
    fusion = install(model)
    slots = {name: slot for slot, name in enumerate(folders)}
    for name, slot in slots.items():
        fusion.load(slot, read_adapter(folders[name], name=name))
    tokens, cache = list(ids), DynamicCache(config=model.config)
    total = spans[-1].end
    for position in range(total - 1):
        mix = next(span.mix for span in spans if span.start <= position < span.end)
        segment = Segment(1, tuple((slots[part.name], part.weight) for part in mix.adapters))
        with fusion.batch((segment,)):
            logits = model(torch.tensor([[tokens[position]]]), past_key_values=cache).logits
        if position + 1 >= len(ids):
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(ids) :]


PLANS = [
    Plan.of(A),
    Plan(((0, A), (5, B), (11, EMPTY_MIX), (12, AB))),
    Plan(((0, EMPTY_MIX), (20, C))),
    Plan(((0, A), (7, B)), every(4, A, B, EMPTY_MIX)()),
]


async def test_spans_are_what_the_model_computes_token_by_token(engine: FusedEngine, folders: dict[str, Path]) -> None:
    ids = prompt(3, 20)
    for number, plan in enumerate(PLANS):
        tokens, spans = await run(engine, f"r{number}", ids, plan)
        assert [span.start for span in spans] == [0, *[span.end for span in spans[:-1]]]
        assert spans[-1].end == 20 + len(tokens) == 44
        assert tokens == by_hand(folders, ids, spans), plan
    assert len(spans) > 6, "the follower changed the mix again and again"
    assert_nothing_leaked(engine)


async def test_a_follower_decides_from_the_token_it_gets_on(engine: FusedEngine) -> None:
    _, spans = await run(engine, "r", prompt(1, 9), Plan(((0, A),), every(5, A, B)()), 12)
    assert spans == (Span(0, 14, A), Span(14, 19, B), Span(19, 21, A))


@pytest.mark.parametrize("config", [None, TINY], ids=["room", "tiny"])
async def test_tokens_and_spans_are_the_same_alone_and_in_any_batch(
    folders: dict[str, Path], config: EngineConfig | None
) -> None:
    """With chunked prefill, with preemption in the tiny cache, and with adapters that must be loaded at each
    change: six adapters on two or three slots, and at most two per request."""
    engine = await build(folders, config or EngineConfig(slots=3, page_tokens=8, cache_tokens=2048, batch_tokens=24))

    def jobs() -> list[tuple[list[int], Plan]]:
        made = []
        for i in range(8):
            first, second = (Mix.of({NAMES[j % 6]: 1.0}) for j in (i, i + 1))
            prefix = ((0, first), (3 + i, second)) if i % 2 else ((0, first),)
            made.append((prompt(i % 3, 14 + 2 * i), Plan(prefix, every(3 + i % 3, second, first)())))
        return made

    try:
        alone = [await run(engine, f"a{i}", *job) for i, job in enumerate(jobs())]
        async with asyncio.timeout(HANG_S):
            together = await asyncio.gather(*(run(engine, f"b{i}", *job) for i, job in enumerate(jobs())))
        assert together == alone
        assert all(len(tokens) == 24 and len(spans) > 4 for tokens, spans in alone)
        for (ids, _), (tokens, spans) in zip(jobs(), alone, strict=True):
            assert tokens == by_hand(folders, ids, spans)
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()


async def test_activated_adapters_that_are_preempted_say_what_peft_says(tmp_path: Path) -> None:
    """In a cache that holds two of these eight, in prompts that are computed in chunks of 24 tokens."""
    invocations = {"a": [9, 3], "b": [7]}
    folders = {
        name: peft_adapter(tmp_path / name, seed, r=3, alora_invocation_tokens=tokens, task_type="CAUSAL_LM")
        for seed, (name, tokens) in enumerate(invocations.items())
    }
    rest = [token for token in prompt(1, 40) if token not in (3, 7, 9)]
    prompts = [[9, 3, 7, *rest[:9]], [*rest[:20], 7, *rest[:12], 9, 3, 4], rest[:30], [7, *rest[:28], 9, 3]]
    jobs = [(ids, name) for ids in prompts for name in invocations]
    engine = await build(folders, TINY)
    try:
        async with asyncio.timeout(HANG_S):
            found = await asyncio.gather(
                *(run(engine, str(n), ids, Plan.of(Mix.of({name: 1.0}))) for n, (ids, name) in enumerate(jobs))
            )
        for (ids, name), (tokens, spans) in zip(jobs, found, strict=True):
            expected = load_peft(folders[name]).generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24,
                do_sample=False, eos_token_id=None,
            )[0, len(ids) :].tolist()  # fmt: skip
            assert tokens == expected, (ids, name, spans)
        assert {len(spans) for _, spans in found} == {1, 2}
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()


async def test_a_mix_that_needs_too_many_slots_is_ignored(folders: dict[str, Path]) -> None:
    """To recompute a request takes the adapters of all its spans at once."""
    engine = await build(folders, TINY)
    try:
        _, spans = await run(engine, "r", prompt(1, 9), Plan(((0, A),), every(4, A, B, C)()), 14)
        assert [span.mix for span in spans] == [A, B, A]
        assert_nothing_leaked(engine)
        await engine.keep(["c"])
        _, spans = await run(engine, "kept", prompt(1, 9), Plan(((0, A),), every(4, A, B, C)()), 14)
        assert [span.mix for span in spans] == [A, C, A], "only c, which is kept anyway, fits beside a"
    finally:
        await engine.stop()


async def test_a_request_that_waits_for_adapters_can_be_closed(folders: dict[str, Path]) -> None:
    engine = await build(folders, EngineConfig(slots=1, page_tokens=8, cache_tokens=1024, batch_tokens=48))
    try:
        ids = prompt(2, 12)
        holder = asyncio.create_task(run(engine, "holder", ids, Plan.of(A), 600))
        await async_wait_for(lambda: engine.stats().pinned, "pin")
        # starts plain, then wants an adapter while the only slot is taken
        stream = engine.submit(
            ids, Plan(((0, EMPTY_MIX),), every(3, EMPTY_MIX, B)()), Sampling(50, ignore_eos=True), request_id="r"
        )
        seen = 0
        async with asyncio.timeout(HANG_S):
            async for event in stream:
                seen += len(event.token_ids)
                if seen >= 4:
                    break
        waiting = asyncio.ensure_future(anext(stream))
        await async_wait_for(lambda: engine.stats().adapter_demand == 2, "wait for the adapter")
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len((await holder)[0]) == 600
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()


@pytest.mark.parametrize("broken", ["_readmit", "_run_followers"])
async def test_an_error_between_two_steps_ends_every_request(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Even one that is out of the batch at that moment."""
    engine = await build(folders, EngineConfig(slots=2, page_tokens=8, cache_tokens=1024, batch_tokens=48))
    library = getattr(engine._batching, broken)

    def explode(processor: object) -> None:
        library(processor)
        if any(request.parked for request in engine._batching._requests.values()):
            raise ZeroDivisionError("between two steps")

    monkeypatch.setattr(engine._batching, broken, explode)
    jobs = [(prompt(i, 12), Plan(((0, A),), every(4, A, B)())) for i in range(3)]
    async with asyncio.timeout(HANG_S):
        results = await asyncio.gather(
            *(run(engine, f"r{i}", *job) for i, job in enumerate(jobs)), return_exceptions=True
        )
    assert {type(result) for result in results} == {EngineFailed}
    assert engine.stats().running == engine.stats().waiting == engine.stats().pinned == 0
    assert engine._batching._requests == {}
    await engine.stop()


async def test_bad_plans_are_refused(engine: FusedEngine) -> None:
    for spans in [(), ((1, A),), ((0, A), (0, B)), ((0, A), (5, B), (4, C)), ((0, A), (10, B))]:
        with pytest.raises(InvalidRequest, match="ascend from 0"):
            await run(engine, "r", prompt(0, 9), Plan(spans))
    assert_nothing_leaked(engine)
