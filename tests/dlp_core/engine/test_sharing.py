"""Cache blocks are shared by equal tokens under equal mixes, and never otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlp_core.adapter.weights import Adapter
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.dlp_core.engine.test_engine import NAMES, assert_nothing_leaked, build, generate, prompt
from tests.dlp_core.engine.test_spans import run
from tests.support.tiny import peft_adapter, tiny_llama

pytestmark = pytest.mark.model

A, B = Mix.of({"a": 1.0}), Mix.of({"b": 1.0})
PAGE = 8
IDS = prompt(1, 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2 + seed, lora_alpha=16) for seed, name in enumerate(NAMES)}


@pytest.fixture
async def engine(folders: dict[str, Path]) -> AsyncIterator[FusedEngine]:
    engine = await build(folders)
    yield engine
    assert_nothing_leaked(engine)
    await engine.stop()


async def shared(engine: FusedEngine, request_id: str, ids: list[int], mix: Mix | Plan) -> int:
    """Prompt tokens of one request that were not computed."""
    before = engine.stats().shared_tokens
    await run(engine, request_id, ids, mix if isinstance(mix, Plan) else Plan.of(mix), 4)
    return engine.stats().shared_tokens - before


@pytest.mark.parametrize("mix", [EMPTY_MIX, A, Mix.of({"a": 0.7, "b": 0.3})], ids=str)
async def test_equal_tokens_under_an_equal_mix_are_computed_once(engine: FusedEngine, mix: Mix) -> None:
    """Adapters share as much as the plain backbone: every full block except the last token's."""
    fresh = await generate(engine, "one", IDS, mix)
    assert engine.stats().shared_tokens == 0
    assert await generate(engine, "two", IDS, mix) == fresh
    assert engine.stats().shared_tokens == 56
    assert await shared(engine, "longer", [*IDS, 5, 6, 7], mix) == 64
    assert await shared(engine, "other end", [*IDS[:40], *prompt(9, 24)], mix) == 40


async def test_the_order_of_a_mix_does_not_matter(engine: FusedEngine) -> None:
    assert await shared(engine, "one", IDS, Mix.of({"a": 0.5, "b": 0.5})) == 0
    assert await shared(engine, "two", IDS, Mix.of({"b": 0.5, "a": 0.5})) == 56


async def test_other_salts_share_nothing(engine: FusedEngine) -> None:
    """Whether a prompt was asked before can be told by the time it takes, but not by who is not to know."""
    plans = [replace(Plan.of(mix), salt=salt) for mix in (A, EMPTY_MIX) for salt in ("", "team-a", "team-b")]
    for number, plan in enumerate(plans):
        assert await shared(engine, f"r{number}", IDS, plan) == 0
    for number, plan in enumerate(plans):
        assert await shared(engine, f"s{number}", IDS, plan) == 56


async def test_other_mixes_share_nothing(engine: FusedEngine) -> None:
    for number, mix in enumerate([A, B, EMPTY_MIX, Mix.of({"a": 0.5}), Mix.of({"a": 0.5, "b": 0.5})]):
        assert await shared(engine, f"r{number}", IDS, mix) == 0


async def test_spans_share_up_to_where_they_diverge(engine: FusedEngine) -> None:
    assert await shared(engine, "one", IDS, Plan(((0, A), (30, B)))) == 0
    assert await shared(engine, "same", IDS, Plan(((0, A), (30, B)))) == 56
    assert await shared(engine, "later", IDS, Plan(((0, A), (40, B)))) == 24
    assert await shared(engine, "never", IDS, A) == 40  # what "later" added
    assert await shared(engine, "early", IDS, Plan(((0, EMPTY_MIX), (1, A)))) == 0


async def test_a_completion_is_shared_as_the_next_turns_prompt(engine: FusedEngine) -> None:
    tokens, _ = await run(engine, "one", IDS, Plan.of(A), 19)
    assert await shared(engine, "two", [*IDS, *tokens, 5], A) == 80


async def test_concurrent_requests_share_and_stay_correct(engine: FusedEngine) -> None:
    jobs = [(IDS[: 40 + 3 * (i % 5)], (A, B, EMPTY_MIX)[i % 3]) for i in range(18)]
    alone = [await generate(engine, f"a{i}", *job) for i, job in enumerate(jobs)]
    assert await asyncio.gather(*(generate(engine, f"b{i}", *job) for i, job in enumerate(jobs))) == alone
    assert engine.stats().shared_tokens > 18 * 32


class Republished(FolderSource):
    """The name stays, the bytes behind it change."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__({})
        self._versions = folders
        self.current = 0

    def digest(self, name: str) -> str:
        return f"sha256:{self.current}"

    def size(self, name: str) -> int:
        return 1

    def invocation(self, name: str) -> None:
        return None

    def load(self, name: str) -> Adapter:
        from dlp_core.adapter.weights import read_adapter

        return read_adapter(self._versions[self.current], name=name)


async def test_an_adapter_republished_under_its_name_shares_nothing(folders: dict[str, Path]) -> None:
    model = tiny_llama()
    fusion = install(model)
    source = Republished([folders["a"], folders["b"]])
    config = EngineConfig(slots=2, page_tokens=PAGE, cache_tokens=1024, batch_tokens=48)
    engine = FusedEngine(model, fusion, Residency(source, fusion, 2), config)
    await engine.start()
    try:
        old = await generate(engine, "one", IDS, A)
        source.current = 1
        assert await shared(engine, "two", IDS, A) == 0
        assert await generate(engine, "three", IDS, A) != old
        source.current = 0
        assert await generate(engine, "four", IDS, A) == old
        assert engine.stats().shared_tokens == 112
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()


async def test_unused_cached_blocks_are_evicted(folders: dict[str, Path]) -> None:
    """Unused blocks are dropped when a request needs the space."""
    engine = await build(folders, EngineConfig(slots=3, page_tokens=PAGE, cache_tokens=128, batch_tokens=48))
    try:
        for number in range(6):
            assert await shared(engine, f"r{number}", prompt(number, 100), A) == 0
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()
