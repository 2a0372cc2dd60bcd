"""A model that is split over two processes says what it says in one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from dlp_core.engine.config import VllmConfig
from dlp_core.engine.request import Plan
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.engine_contract import ABC, BC, A, B
from tests.support.engines import Reference, assert_nothing_leaked, prompt, run, spans_of
from tests.support.followers import every
from tests.support.vllm_engine import CONFIG, running

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]

JOBS: list[tuple[list[int], Mix | Plan]] = [
    (prompt(0), EMPTY_MIX),
    (prompt(1), A),
    (prompt(2), BC),
    (prompt(3), ABC),
    (prompt(4, 9), Plan(((0, EMPTY_MIX), (40, A), (90, BC)))),
    (prompt(5), EMPTY_MIX),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    async with running(folder, replace(CONFIG, vllm=VllmConfig(eager=True, tensor_parallel=2))) as engine:
        yield engine


async def test_there_are_two_workers(engine: VllmEngine) -> None:
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert len([name for name in names if name.startswith("VLLM::Worker_TP")]) == 2, names


async def test_tokens_equal_merged_weights_beside_other_mixes_and_plain_rows(
    engine: VllmEngine, reference: Reference
) -> None:
    found = await asyncio.gather(*(run(engine, f"r{number}", *job) for number, job in enumerate(JOBS)))
    for job, completion in zip(JOBS, found, strict=True):
        assert completion.tokens == reference.tokens(*job), job[1]
    assert_nothing_leaked(engine)


async def test_mixes_change_while_tokens_are_written(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(6)
    found = await run(engine, "f", ids, Plan(((0, A),), every(4, ABC, EMPTY_MIX, B)()), max_tokens=24)
    assert len(found.spans) == 7
    assert found.tokens == reference.tokens(ids, spans_of(found.spans), 24)


async def test_a_load_that_fails_is_told_and_the_next_call_gets_its_own_answers(engine: VllmEngine) -> None:
    errors = await engine._call("dlp_place", 0, "/nowhere", 1, [])
    assert len(errors) == 2
    assert all("nowhere" in error for error in errors)
    shapes, others = await engine._call("dlp_shapes")
    assert shapes == others
    assert tuple(shapes["model.layers.0.self_attn.k_proj"]) == (64, 64)
