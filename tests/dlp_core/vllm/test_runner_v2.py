"""vLLM's second model runner, the one for GPUs, says what the first one says. Its kernels run in Triton's interpreter.

The cache is so small that requests are preempted, which this runner is told in another way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from dlp_core.engine.request import Plan
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.engine_contract import ABC, BC, A, B
from tests.support.engines import Reference, assert_nothing_leaked, prompt, run, spans_of
from tests.support.followers import every
from tests.support.interpreted_triton import interpreted_triton
from tests.support.vllm_engine import CONFIG, running

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
pytest.importorskip("triton", reason="Triton is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    variables = interpreted_triton(tmp_path_factory.mktemp("triton") / "site")
    config = replace(CONFIG, cache_tokens=256, batch_tokens=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.config.vllm.HAS_TRITON", True)
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")  # this process looks at it again and again
        async with running(folder, config, environment=variables) as engine:
            assert engine._llm.vllm_config.use_v2_model_runner
            yield engine


async def test_tokens_equal_merged_weights_in_chunks_and_while_mixes_change(
    engine: VllmEngine, reference: Reference
) -> None:
    jobs: list[tuple[list[int], Mix | Plan]] = [
        (prompt(0), EMPTY_MIX),
        (prompt(1), BC),
        (prompt(2), ABC),
        (prompt(3, 9), Plan(((0, EMPTY_MIX), (40, A), (90, BC)))),
    ]
    found = await asyncio.gather(*(run(engine, f"r{number}", *job, max_tokens=8) for number, job in enumerate(jobs)))
    for job, completion in zip(jobs, found, strict=True):
        assert completion.tokens == reference.tokens(*job, 8), job[1]
    ids = prompt(6)
    completion = await run(engine, "f", ids, Plan(((0, A),), every(4, ABC, EMPTY_MIX, B)()))
    assert len(completion.spans) == 5
    assert completion.tokens == reference.tokens(ids, spans_of(completion.spans))
    assert_nothing_leaked(engine)


async def test_requests_that_are_preempted_say_the_same(engine: VllmEngine, reference: Reference) -> None:
    """Five come to 2 blocks each of the 8 that there are."""
    before = engine._gauges.preempted
    plans = [Plan(((0, first), (10, second))) for first, second in [(A, B), (B, ABC), (EMPTY_MIX, A), (BC, A), (B, BC)]]
    jobs = [(prompt(number + 20)[:30], plan) for number, plan in enumerate(plans)]
    found = await asyncio.gather(*(run(engine, f"p{number}", *job, max_tokens=34) for number, job in enumerate(jobs)))
    for job, completion in zip(jobs, found, strict=True):
        assert completion.tokens == reference.tokens(*job, 34)
    assert engine._gauges.preempted > before
    assert_nothing_leaked(engine)


async def test_a_dummy_batch_is_of_requests_that_nobody_sent(engine: VllmEngine, reference: Reference) -> None:
    await engine._llm.engine_core.call_utility_async("execute_dummy_batch")
    assert (await run(engine, "r", prompt(7), BC, max_tokens=4)).tokens == reference.tokens(prompt(7), BC, 4)
