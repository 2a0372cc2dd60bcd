"""Without the plugin, blocks are keyed by their tokens alone: what keeps mixes and tenants apart is the salt.

Two mutants say wrong things here, so that the tests are known to see it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from dlp_core.engine.config import VllmConfig
from dlp_core.engine.request import Plan
from dlp_core.errors import AdapterRefused
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.engines import PAGE, Reference, assert_nothing_leaked, prompt, run, spans_of
from tests.support.followers import changing
from tests.support.vllm_engine import CONFIG, running

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.seam import blocks

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]

B, MINUS, TWICE = Mix.of({"b": 1.0}), Mix.of({"b": -1.0}), Mix.of({"b": 2.0})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    """One without the plugin, for adapters on three modules."""
    config = replace(CONFIG, vllm=VllmConfig(eager=True, targets=("q_proj", "k_proj", "v_proj")))
    async with running(folder, config, plugin=False) as engine:
        yield engine


async def shared_by_a_second(engine: VllmEngine, ids: list[int], first: Plan, second: Plan) -> tuple[int, list[int]]:
    """How many tokens the second of two requests did not compute, and what it says."""
    await run(engine, "first", ids, first)
    before = engine.stats().shared_tokens
    found = await run(engine, "second", ids, second)
    assert_nothing_leaked(engine)
    return engine.stats().shared_tokens - before, found.tokens


async def test_the_plugin_is_not_active(engine: VllmEngine) -> None:
    assert not await blocks.active(engine._llm)
    assert not engine._by_block


async def test_requests_share_if_their_mixes_are_the_same_all_along(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(80, 9)
    plan = Plan(((0, B), (70, MINUS)))
    for second, expected in [
        (plan, len(ids) // PAGE * PAGE),
        (Plan.of(B), 0),
        (Plan.of(EMPTY_MIX), 0),
        (Plan(((0, B), (70, TWICE))), 0),
        (replace(plan, salt="team-a"), 0),
    ]:
        shared, tokens = await shared_by_a_second(engine, ids, plan, second)
        assert (shared, tokens) == (expected, reference.tokens(ids, second)), second
    shared, _ = await shared_by_a_second(engine, ids, replace(plan, salt="team-b"), replace(plan, salt="team-a"))
    assert shared == len(ids) // PAGE * PAGE, "team-a has asked before"


async def test_a_mix_that_changes_in_the_completion_begins_anew(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(81, 14)[:100]
    before = engine.stats().shared_tokens
    found = await run(engine, "f", ids, Plan(((0, B),), changing(10, MINUS)), max_tokens=24)
    assert found.tokens == reference.tokens(ids, spans_of(found.spans), 24)
    assert engine.stats().shared_tokens == before


async def test_a_mutant_without_the_salt_and_without_the_plugin_says_what_another_mix_would(
    engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, first, second = prompt(82, 9), Plan.of(B), Plan.of(MINUS)
    shared, tokens = await shared_by_a_second(engine, ids, first, second)
    assert (shared, tokens) == (0, reference.tokens(ids, second))
    monkeypatch.setattr("dlp_core.vllm.request.salt_of", lambda *args, **kwargs: "salt")
    shared, tokens = await shared_by_a_second(engine, ids, first, second)
    assert shared == len(ids) // PAGE * PAGE
    assert tokens != reference.tokens(ids, second)


async def test_a_mutant_that_takes_the_plugin_for_active_says_what_another_mix_would(
    engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, first, second = prompt(83, 9), Plan.of(B), Plan.of(MINUS)
    monkeypatch.setattr(engine, "_by_block", True)
    shared, tokens = await shared_by_a_second(engine, ids, first, second)
    assert shared == len(ids) // PAGE * PAGE
    assert tokens != reference.tokens(ids, second)


@pytest.mark.parametrize(
    ("name", "modules"), [("a", "down_proj, gate_proj, o_proj, up_proj"), ("c", "down_proj, gate")]
)
async def test_an_adapter_on_a_module_that_is_not_installed_is_refused(
    engine: VllmEngine, name: str, modules: str
) -> None:
    """Never answered by what is left of it, or by the plain backbone."""
    with pytest.raises(AdapterRefused, match=rf"targets {modules}.*engine\.vllm\.targets has q_proj, k_proj, v_proj"):
        await run(engine, "r", prompt(84), Mix.of({"b": 0.5, name: 0.5}))
    assert_nothing_leaked(engine)
