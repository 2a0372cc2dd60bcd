"""What goes wrong in one request stays in it: overflow, samplers that raise, and steps that fail."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from dlp_core.adapter.invocation import Invocation
from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.engine import sampling
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling
from dlp_core.errors import AdapterRefused, DLPError, EngineFailed, NotFinite, StepFailed
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.dlp_core.engine.test_engine import CONFIG, assert_nothing_leaked, generate, prompt
from tests.support.cpu_implementations import CPU_IMPLEMENTATIONS, cpu_implementation
from tests.support.tiny import peft_adapter, tiny_llama
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.model

GOOD = ("a", "b")
HOSTILE = {
    "huge_a": ("a", 1e30, 1.0),
    "huge_b": ("b", 1.0, 1e30),
    "largest_a": ("a", 3e38, 1.0),
    "large_a": ("a", 1e37, 1.0),
    "large_b": ("b", 1.0, 1e37),
    "huge_both": ("a", 1e30, 1e30),
    "large_both": ("b", 1e15, 1e15),
    "largest": ("a", 3e38, 3e38),
    "infinite": ("a", float("inf"), 1.0),
    "no_number": ("b", float("nan"), 1.0),
    "at_the_bound": ("a", 1e3, 1e3),
}
"""Name to the adapter it is made of, and by what its A and B are multiplied. The reader would refuse them all: this is
the second line of defence."""


class HostileSource(FolderSource):
    def digest(self, name: str) -> str:
        return f"{super().digest(HOSTILE.get(name, (name,))[0])}-{name}"

    def size(self, name: str) -> int:
        return super().size(HOSTILE.get(name, (name,))[0])

    def invocation(self, name: str) -> Invocation | None:
        return super().invocation(HOSTILE.get(name, (name,))[0])

    def load(self, name: str) -> Adapter:
        good, by_a, by_b = HOSTILE.get(name, (name, 1.0, 1.0))
        adapter = super().load(good)
        modules = {
            path: LoRAWeights(weights.a_RD * by_a, weights.b_OR * by_b, weights.scaling)
            for path, weights in adapter.modules.items()
        }
        return replace(adapter, name=name, modules=modules)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    return {
        name: peft_adapter(root / name, seed, r=4, lora_alpha=16, target_modules=targets)
        for seed, name in enumerate(GOOD)
    }


async def build(folders: dict[str, Path], dtype: torch.dtype = torch.float32) -> FusedEngine:
    model = tiny_llama(dtype=dtype)
    fusion = install(model)
    residency = Residency(HostileSource(folders), fusion, len(HOSTILE) + len(GOOD))
    config = replace(CONFIG, slots=len(HOSTILE) + len(GOOD), max_requests=64)
    engine = FusedEngine(model, fusion, residency, config)
    await engine.start()
    return engine


async def attempt(engine: FusedEngine, request_id: str, ids: list[int], mix: Mix, **options: Any) -> Any:
    try:
        return await generate(engine, request_id, ids, mix, max_tokens=6, **options)
    except DLPError as error:
        return type(error)


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_overflow_does_not_reach_other_rows(
    implementation: str, dtype: torch.dtype, folders: dict[str, Path]
) -> None:
    """Innocent requests, plain ones included, get the tokens they get without company: beside hostile ones, and after
    them from the prefix cache. Prompts share prefixes, so blocks are shared wherever they may be."""
    rng = Random(0)
    mixes = [EMPTY_MIX, Mix.of({"a": 1.0}), Mix.of({"a": 0.6, "b": 0.4})]
    shared = prompt(1, 24)
    innocent = [(shared[: rng.randint(8, 24)] + prompt(n, rng.randint(1, 40)), mixes[n % 3]) for n in range(12)]
    with cpu_implementation(implementation):
        quiet = await build(folders, dtype)
        expected = [await attempt(quiet, f"quiet-{n}", *job) for n, job in enumerate(innocent)]
        await quiet.stop()
        engine = await build(folders, dtype)
        for turn in range(3):
            hostile = [
                (shared + prompt(n + turn, 20), Mix.of({name: 1.0} if n % 2 else {name: 0.5, "a": 0.5}))
                for n, name in enumerate([*HOSTILE, *HOSTILE])
            ]
            jobs = [(job, n) for n, job in enumerate(innocent)] + [(job, None) for job in hostile]
            rng.shuffle(jobs)
            found = await asyncio.gather(
                *(attempt(engine, f"{turn}-{n}", *job) for n, (job, _) in enumerate(jobs)),
            )
            answers = {number: answer for answer, (_, number) in zip(found, jobs, strict=True) if number is not None}
            assert [answers[n] for n in range(len(innocent))] == expected
            refused = [answer for answer, (_, number) in zip(found, jobs, strict=True) if number is None]
            assert {NotFinite, AdapterRefused} <= {kind for kind in refused if isinstance(kind, type)}
            assert all(isinstance(answer, tuple) or answer in (NotFinite, AdapterRefused) for answer in refused)
        assert_nothing_leaked(engine)
        await engine.stop()


@pytest.mark.parametrize("options", [{"temperature": 1e-40}, {"temperature": 5e-324}, {"temperature": 1e-5}])
async def test_a_tiny_temperature_is_greedy(folders: dict[str, Path], options: dict[str, Any]) -> None:
    engine = await build(folders)
    greedy = await generate(engine, "g", prompt(3, 9), EMPTY_MIX)
    assert await generate(engine, "t", prompt(3, 9), EMPTY_MIX, **options) == greedy
    await engine.stop()


@pytest.mark.parametrize(
    "bad", [{"repetition_penalty": 1e-40}, {"repetition_penalty": 101.0}, {"temperature": float("inf")}]
)
def test_what_would_overflow_the_scores_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(DLPError, match=next(iter(bad))):
        Sampling(8, **bad)


async def test_a_sampler_that_raises_ends_its_request_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    next_draw, drawn = sampling.Sampler.next_draw, list[Any]()

    def failing(self: Any) -> Any:
        drawn.append(self)
        if self._sampling.seed == 666 and drawn.count(self) > 2:
            raise RuntimeError("probability tensor contains inf")
        return next_draw(self)

    monkeypatch.setattr(sampling.Sampler, "next_draw", failing)
    engine = await build(folders)
    jobs = [(prompt(n, 10), EMPTY_MIX) for n in range(6)]
    expected = [await generate(engine, f"alone-{n}", *job, temperature=1.0, seed=n) for n, job in enumerate(jobs)]
    with caplog.at_level(logging.WARNING, "dlp_core"):
        bad = asyncio.create_task(
            generate(engine, "bad", prompt(7, 10), Mix.of({"a": 1.0}), temperature=1.0, seed=666, ignore_eos=True)
        )
        found = await asyncio.gather(
            *(generate(engine, f"beside-{n}", *job, temperature=1.0, seed=n) for n, job in enumerate(jobs))
        )
        with pytest.raises(RuntimeError, match="contains inf"):
            await bad
    assert found == expected
    assert "request bad under a ends, alone" in caplog.text
    engine.check_health()
    assert_nothing_leaked(engine)
    await engine.stop()


async def test_a_follower_that_raises_ends_its_request_alone(folders: dict[str, Path]) -> None:
    from dlp_core.engine.request import Plan

    def follow(token: int) -> Mix | None:
        raise ValueError("no sentence")

    engine = await build(folders)
    with pytest.raises(ValueError, match="no sentence"):
        async for _ in engine.submit(prompt(1, 5), Plan(((0, EMPTY_MIX),), follow), Sampling(9), request_id="f"):
            pass
    assert await generate(engine, "next", prompt(1, 5), EMPTY_MIX)
    assert_nothing_leaked(engine)
    await engine.stop()


async def test_only_requests_of_the_failed_step_are_suspects(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A request in the step that raised is not to be tried elsewhere; one that only waited may be."""
    engine = await build(folders)

    def explode(*args: object) -> None:
        raise MemoryError("out of memory")

    with engine._batching.pause():
        monkeypatch.setattr(engine._batching._fusion, "batch", explode)
        suspect = asyncio.create_task(generate(engine, "suspect", prompt(1, 40), EMPTY_MIX))
        waiting = asyncio.create_task(generate(engine, "waiting", prompt(2, 40), EMPTY_MIX))
        await asyncio.sleep(0.05)
    async with asyncio.timeout(HANG_S):
        results = await asyncio.gather(suspect, waiting, return_exceptions=True)
    assert {type(result) for result in results} <= {StepFailed, EngineFailed}
    assert StepFailed in {type(result) for result in results}
    assert "it computed ['suspect'" in caplog.text
    with pytest.raises(EngineFailed, match="has ended"):
        engine.check_health()
    await engine.stop()
