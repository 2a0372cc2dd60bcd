"""The engine with CUDA graphs, real ones or emulated: the tokens are those of the engine without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from dlp_core.attention import triton
from dlp_core.engine import batching
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.paged_attention import triton_attention
from dlp_core.engine.request import Plan
from dlp_core.engine.step import Steps
from dlp_core.errors import EngineFailed
from dlp_core.fusion.layers import Fusion, install
from dlp_core.fusion.segments import Segment
from dlp_core.fusion.triton import Limits, TritonOp
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.dlp_core.engine.test_engine import assert_nothing_leaked, generate, prompt
from tests.support.cuda_graphs import emulated_engine_graphs
from tests.support.op_bank import DEVICE
from tests.support.tiny import peft_adapter, tiny_llama

pytestmark = pytest.mark.model

REQUESTS, TOKENS = 6, 5
GRAPHS = 4
"""For 1, 2, 4 and 6 requests."""
CONFIG = EngineConfig(slots=3, max_requests=REQUESTS, page_tokens=8, cache_tokens=96, batch_tokens=24)
A, B, C = Mix.of({"a": 1.0}), Mix.of({"a": 0.7, "b": 0.3}), Mix.of({"c": 0.5, "d": 0.5})
Job = tuple[list[int], Mix | Plan, dict[str, Any]]
JOBS: list[Job] = [
    (prompt(1, 13), B, {}),
    (prompt(2, 3), EMPTY_MIX, {}),
    (prompt(3, 26), C, {}),  # more tokens than a batch, and adapters that wait for slots
    (prompt(4, 5), A, {"temperature": 0.9, "seed": 3, "top_p": 0.9}),
    (prompt(5, 8), B, {"logprobs": 2, "repetition_penalty": 1.3}),
    (prompt(6, 9), Plan(((0, A), (5, EMPTY_MIX), (9, C))), {"presence_penalty": 0.8, "temperature": 1.1, "seed": 5}),
    (prompt(7, 26), EMPTY_MIX, {"min_tokens": 4}),  # with the others, more than the cache holds
    (prompt(8, 2), A, {}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, targets = tmp_path_factory.mktemp("adapters"), ["q_proj", "v_proj", "down_proj"]
    return {n: peft_adapter(root / n, i, r=2 + i, target_modules=targets) for i, n in enumerate("abcd")}


@asynccontextmanager
async def engine(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, *, graphs: bool, limits: bool = True
) -> AsyncIterator[FusedEngine]:
    """With the ops for CUDA devices, the one for mixes with the limits that graphs need."""
    plain = install(tiny_llama())
    widths = {path: shape.d_in for path, shape in plain.shapes.items()}
    op = TritonOp(DEVICE, torch.float32, Limits(REQUESTS, CONFIG.slots, widths, plain.groups) if limits else None)
    with emulated_engine_graphs(monkeypatch), monkeypatch.context() as patches:
        patches.setattr(batching, "attention_op", triton_attention)
        patches.setattr(batching, "has_graphs", lambda device: True)
        patches.setattr(triton, "_PROGRAMS", 8)  # the interpreter runs one after the other
        model = tiny_llama().to(DEVICE)
        fusion = install(model, op)
        residency = Residency(FolderSource(folders), fusion, CONFIG.slots)
        running = FusedEngine(model, fusion, residency, replace(CONFIG, cuda_graphs=graphs))
        await running.start()
        try:
            yield running
        finally:
            await running.stop()


async def answers(running: FusedEngine, name: str, jobs: Sequence[Job] = JOBS) -> list[Any]:
    places = asyncio.Semaphore(REQUESTS)

    async def one(number: int, ids: list[int], mix: Mix | Plan, sampling: dict[str, Any]) -> Any:
        async with places:
            options = {"ignore_eos": "min_tokens" not in sampling} | sampling
            return await generate(running, f"{name}{number}", ids, mix, max_tokens=TOKENS, **options)

    found = await asyncio.gather(*(one(number, *job) for number, job in enumerate(jobs)))
    assert_nothing_leaked(running)
    return found


async def test_graphs_change_no_token(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed requests, adapters that come and go, spans, sampling, penalties, log-probabilities, preemption."""
    async with engine(folders, monkeypatch, graphs=False) as eager:
        expected = await answers(eager, "e")
        assert eager.stats().cuda_graphs == 0
    async with engine(folders, monkeypatch, graphs=True) as graphed:
        assert graphed.stats().cuda_graphs == GRAPHS  # at the start, and no more
        assert await answers(graphed, "g") == expected
        assert graphed.stats().cuda_graphs == GRAPHS


FEW = [JOBS[0], JOBS[1], JOBS[3]]


async def test_without_limits_a_graph_would_serve_the_plain_model(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(folders, monkeypatch, graphs=False) as eager:
        expected = await answers(eager, "e", FEW)
    async with engine(folders, monkeypatch, graphs=True, limits=False) as graphed:
        found = await answers(graphed, "g", FEW)
    assert found[1] == expected[1]  # has no adapters
    assert found[0] != expected[0]


async def test_segments_cover_a_padded_pass(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer outside of graphs refuses a pass whose tokens they do not cover."""
    covered = list[tuple[int, int]]()
    batch = Fusion.batch

    def watched(self: Fusion, segments: Sequence[Segment], head_rows: Sequence[int]) -> Any:
        io = graphed._batching.batch_processor.inputs_and_outputs
        covered.append((sum(segment.length for segment in segments), io.num_q_tokens))
        return batch(self, tuple(segments), head_rows)

    async with engine(folders, monkeypatch, graphs=True) as graphed:
        monkeypatch.setattr(Fusion, "batch", watched)
        await answers(graphed, "g", [(prompt(n, 3), A, {}) for n in range(3)])
    assert all(tokens == seen for tokens, seen in covered)
    assert any(seen == 4 for _, seen in covered)  # of three requests


async def test_nothing_is_picked_inside_a_graph(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Steps._sample

    def picking(self: Steps, *arguments: Any) -> None:
        sample(self, *arguments)
        if self._in_graph:
            self._pick([])
            self._io.output_ids[0, 0].item()

    monkeypatch.setattr(Steps, "_sample", picking)
    with pytest.raises(EngineFailed, match="not permitted when stream is capturing"):
        async with engine(folders, monkeypatch, graphs=True):
            pass
