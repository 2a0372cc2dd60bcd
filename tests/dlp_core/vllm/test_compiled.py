"""A compiled model says what the eager one says. It takes vLLM minutes to start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

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
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    async with running(folder, replace(CONFIG, vllm=VllmConfig(eager=False))) as engine:
        yield engine


async def test_it_is_compiled_and_mixes_are_computed(engine: VllmEngine, reference: Reference) -> None:
    """One at a time and together, in batches of other sizes and under mixes that were not there before."""
    assert engine._llm.vllm_config.compilation_config.backend == "inductor"
    jobs: list[tuple[list[int], Mix | Plan]] = [
        (prompt(0), EMPTY_MIX),
        (prompt(1), BC),
        (prompt(2), ABC),
        (prompt(3, 9), Plan(((0, EMPTY_MIX), (40, A), (90, BC)))),
        (prompt(4), EMPTY_MIX),
    ]
    for number, job in enumerate(jobs):
        assert (await run(engine, f"alone{number}", *job)).tokens == reference.tokens(*job)
    together = await asyncio.gather(*(run(engine, f"r{number}", *job) for number, job in enumerate(jobs)))
    for job, found in zip(jobs, together, strict=True):
        assert found.tokens == reference.tokens(*job), job[1]
    ids = prompt(6)
    found = await run(engine, "f", ids, Plan(((0, A),), every(4, ABC, EMPTY_MIX, B)()), max_tokens=24)
    assert found.tokens == reference.tokens(ids, spans_of(found.spans), 24)
    assert_nothing_leaked(engine)
