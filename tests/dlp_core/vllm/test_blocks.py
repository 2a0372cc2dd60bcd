"""With the plugin, requests share cached blocks as far as tokens and mixes agree, within a tenant, and no further."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dlp_core.engine.request import Plan
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Pin
from dlp_core.vllm.plans import KEY, salt_of, to_wire
from tests.support.engines import PAGE, Reference, assert_nothing_leaked, prompt, run, spans_of
from tests.support.followers import changing

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request

from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.seam import blocks

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]
in_the_package_loop = pytest.mark.asyncio(loop_scope="package")

A, B, C = (Mix.of({name: 1.0}) for name in "abc")
AB = Mix.of({"a": 0.5, "b": 0.5})
IDS = prompt(1000, 14)


async def shared(engine: VllmEngine, reference: Reference, name: str, ids: list[int], mix: Mix | Plan) -> int:
    """Prompt tokens of one request that were not computed. What it says is right."""
    before = engine.stats().shared_tokens
    found = await run(engine, name, ids, mix, max_tokens=4)
    assert found.tokens == reference.tokens(ids, mix, 4), mix
    assert_nothing_leaked(engine)
    return engine.stats().shared_tokens - before


@in_the_package_loop
async def test_the_plugin_is_active_where_blocks_are_keyed_and_not_here(engine: VllmEngine) -> None:
    assert await blocks.active(engine._llm)
    assert engine._by_block


@in_the_package_loop
async def test_equal_tokens_under_an_equal_mix_are_computed_once(engine: VllmEngine, reference: Reference) -> None:
    """Mixes share as much as the plain backbone: every full block except the last token's."""
    ids = IDS[: 3 * PAGE]
    for mix in (EMPTY_MIX, A, AB):
        assert await shared(engine, reference, "one", ids, mix) == 0
        assert await shared(engine, reference, "two", ids, mix) == 2 * PAGE
        assert await shared(engine, reference, "longer", [*ids, 5, 6, 7], mix) == 3 * PAGE
    assert await shared(engine, reference, "order", ids, Mix.of({"b": 0.5, "a": 0.5})) == 2 * PAGE


@in_the_package_loop
async def test_other_mixes_share_nothing(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(1001, 9)
    mixes = [A, B, EMPTY_MIX, Mix.of({"a": 0.5}), AB, Mix.of({"a": 0.4, "b": 0.6})]
    for number, mix in enumerate(mixes):
        assert await shared(engine, reference, f"r{number}", ids, mix) == 0
    for number, mix in enumerate(mixes):
        assert await shared(engine, reference, f"s{number}", ids, mix) == len(ids) // PAGE * PAGE


@in_the_package_loop
async def test_a_prefix_is_shared_by_requests_whose_mixes_differ_later(
    engine: VllmEngine, reference: Reference
) -> None:
    ids = prompt(1002, 14)
    assert await shared(engine, reference, "b", ids, Plan(((0, A), (70, B)))) == 0
    assert await shared(engine, reference, "c", ids, Plan(((0, A), (70, C)))) == 2 * PAGE
    assert await shared(engine, reference, "on", ids, A) == 2 * PAGE
    assert await shared(engine, reference, "later", ids, Plan(((0, A), (71, B)))) == 2 * PAGE
    assert await shared(engine, reference, "earlier", ids, Plan(((0, A), (63, B)))) == PAGE
    assert await shared(engine, reference, "plain", ids, Plan(((0, EMPTY_MIX), (70, B)))) == 0
    # the blocks from 96 on are under B in both, after others
    assert await shared(engine, reference, "same end", ids, Plan(((0, C), (70, B)))) == 0
    assert await shared(engine, reference, "again", ids, Plan(((0, A), (70, B)))) == len(ids) // PAGE * PAGE


@in_the_package_loop
async def test_tenants_share_nothing_and_one_shares_with_itself(engine: VllmEngine, reference: Reference) -> None:
    """Whether a prompt was asked before can be told by the time it takes, but not by who is not to know."""
    ids = prompt(1003, 14)
    for number, plan in enumerate([Plan.of(A), Plan.of(EMPTY_MIX)]):
        for salt in ("", "team-a", "team-b"):
            assert await shared(engine, reference, f"{number}{salt}", ids, replace(plan, salt=salt)) == 0
    other = Plan(((0, A), (70, B)), salt="team-a")
    assert await shared(engine, reference, "own", ids, other) == 2 * PAGE
    assert await shared(engine, reference, "others", ids, replace(other, salt="team-c")) == 0


@in_the_package_loop
async def test_a_mix_that_changes_in_the_completion_keeps_the_blocks_before(
    engine: VllmEngine, reference: Reference
) -> None:
    ids = [*prompt(1004, 14)][:100]
    before = engine.stats().shared_tokens
    found = await run(engine, "f", ids, Plan(((0, A),), changing(10, B)), max_tokens=24)
    assert [span.start for span in found.spans] == [0, 109]
    assert found.tokens == reference.tokens(ids, spans_of(found.spans), 24)
    assert engine.stats().shared_tokens - before == 96, "of the 110 tokens that the request goes on with"


@in_the_package_loop
async def test_without_the_salt_the_plugin_keeps_mixes_apart_and_tenants_not(
    engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is needed: the salt for tenants, the keys of the blocks for mixes."""
    monkeypatch.setattr("dlp_core.vllm.request.salt_of", lambda *args, **kwargs: "salt")
    ids = prompt(1005, 9)
    for number, mix in enumerate([A, B, EMPTY_MIX, AB]):
        assert await shared(engine, reference, f"m{number}", ids, mix) == 0
    assert await shared(engine, reference, "tenant", ids, Plan(((0, A),), salt="team-a")) > 0


# -------------------------------------------------------------------- vLLM's hashes, in this process


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin, active in this process, and undone after the test."""
    for module in (kv_cache_utils, block_pool):
        monkeypatch.setattr(module, "generate_block_hash_extra_keys", blocks._library_keys)
    blocks.register()
    yield
    delattr(EngineCore, blocks._QUESTION)


PINS = {name: Pin(slot, f"sha256:{name}") for slot, name in enumerate("abc")}


def request(spans: list[tuple[int, Mix]] | None, salt: str) -> Any:
    kv_cache_utils.init_none_hash(sha256)
    extra = None if spans is None else {KEY: to_wire(spans, PINS)}
    return Request(
        request_id="r",
        prompt_token_ids=IDS[: 4 * PAGE],
        sampling_params=SamplingParams(max_tokens=1, extra_args=extra),
        pooling_params=None,
        cache_salt=salt,
        block_hasher=kv_cache_utils.get_request_block_hasher(PAGE, sha256),
    )


def agree(one: Any, other: Any) -> list[bool]:
    return [a == b for a, b in zip(one.block_hashes, other.block_hashes, strict=True)]


@pytest.mark.usefixtures("registered")
def test_a_salt_is_in_the_first_block_alone_and_tells_all_blocks_apart() -> None:
    """Each hash has the one before in it, so what the first block has in it, all have."""
    for spans in ([(0, A)], [(0, EMPTY_MIX)], [(0, A), (70, EMPTY_MIX)]):
        salts = [salt_of(to_wire(spans, PINS), tenant, by_block=True) for tenant in ("team-a", "team-b")]
        one, other = (request(spans, salt) for salt in salts)
        keys = [kv_cache_utils.generate_block_hash_extra_keys(one, at, at + PAGE, 0)[0] for at in (0, PAGE)]
        assert ("cache_salt", salts[0]) in keys[0]
        assert salts[0] not in str(keys[1])
        assert agree(one, other) == [False] * 4
        assert agree(one, request(spans, salts[0])) == [True] * 4


@pytest.mark.usefixtures("registered")
def test_blocks_after_one_that_differs_differ_even_under_the_same_mix() -> None:
    whole = request([(0, A)], "s")
    assert agree(whole, request([(0, A), (33, B), (64, A)], "s")) == [True, False, False, False]
    assert agree(whole, request([(0, A), (127, B)], "s")) == [True, True, True, False]
    assert agree(request([(0, B), (32, EMPTY_MIX)], "s"), request([(0, EMPTY_MIX)], "s")) == [False] * 4


@pytest.mark.usefixtures("registered")
def test_requests_without_a_plan_keep_vllms_own_keys() -> None:
    plain = request(None, "s")
    assert kv_cache_utils.generate_block_hash_extra_keys(plain, 0, PAGE, 0) == blocks._library_keys(plain, 0, PAGE, 0)
    assert agree(plain, request([(0, EMPTY_MIX)], "s")) == [True] * 4


@pytest.mark.usefixtures("registered")
def test_the_keys_are_shaped_as_vllms_own() -> None:
    """What follows the tag goes to whoever listens to the cache's events."""
    keys = [kv_cache_utils.generate_block_hash_extra_keys(request([(0, A), (5, B)], "s"), 0, PAGE, 0)[0]]
    [event] = kv_cache_utils.to_event_extra_keys(keys)
    assert len(event) == 3
    assert all(isinstance(part, str) for part in event)
