"""The engine over vLLM in a cache far too small: preemption, and random arrivals, spans, aborts, evictions and
republished adapters, one of them activated.

Whatever else happens, a request says what the model with merged weights says, every request ends exactly once, and no
pin or block is leaked.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dlp_core.adapter.invocation import Invocation
from dlp_core.engine.activation import activated
from dlp_core.engine.config import EngineConfig, VllmConfig
from dlp_core.engine.request import Plan
from dlp_core.errors import DLPError, EngineFailed, RequestAborted
from dlp_core.mix import EMPTY_MIX, Mix, Span
from examples.tiny.model import peft_model, tiny_backbone, tiny_model
from tests.support.engines import Completion, Reference, assert_nothing_leaked, encode, prompt, run, spans_of
from tests.support.followers import every, followed
from tests.support.vllm_engine import running
from tests.support.waiting import HANG_S, async_wait_for

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = [f"{name}.{version}" for name in "abcd" for version in (0, 1)]
INVOCATIONS: dict[str, Invocation] = {f"c.{version}": tuple(encode(" assistant")) for version in (0, 1)}
"""Of the activated adapters; each prompt that is long enough has it several times."""
SLOTS = 3
TIGHT = EngineConfig(
    kind="vllm",
    slots=SLOTS,
    max_requests=32,
    page_tokens=32,
    cache_tokens=256,
    batch_tokens=32,
    vllm=VllmConfig(eager=True),
)


@dataclass(frozen=True)
class Job:
    """A request; hashable, so that what it says is computed once."""

    seed: int
    length: int
    first: Mix
    second: Mix
    boundary: int
    every: int
    tokens: int
    draw: int | None

    @property
    def ids(self) -> list[int]:
        return prompt(self.seed, 7)[: self.length]

    def plan(self) -> Plan:
        spans = ((0, self.first), (self.boundary, self.second))[: 1 + (0 < self.boundary <= self.length)]
        return Plan(spans, every(self.every, self.first, self.second, EMPTY_MIX)() if self.every else None)

    @property
    def spans(self) -> tuple[Span, ...]:
        """What is to run, of the prompt and of a completion as long as wanted."""
        return followed(activated(self.plan(), self.ids, INVOCATIONS.get), self.length, self.tokens)

    @property
    def sampling(self) -> dict[str, Any]:
        return {"max_tokens": self.tokens} | ({} if self.draw is None else {"temperature": 1.0, "seed": self.draw})


@st.composite
def jobs(draw: Any, version: int) -> Job:
    names = [name for name in ADAPTERS if name.endswith(f".{version}")]
    one = st.sampled_from(names)
    mixes = st.one_of(
        st.just(EMPTY_MIX),
        one.map(lambda name: Mix.of({name: 1.0})),
        st.tuples(one, one).map(lambda pair: Mix.of(dict(zip(pair, (0.6, 0.4), strict=True)))),
    )
    first, second = draw(mixes), draw(mixes)
    if len({*first.names, *second.names}) > SLOTS:
        second = first
    return Job(
        seed=draw(st.integers(0, 2)),  # few prompts, so that requests can share blocks
        length=draw(st.integers(1, 75)),
        first=first,
        second=second,
        boundary=draw(st.integers(0, 75)),
        every=draw(st.sampled_from([0, 0, 3, 7])),
        tokens=draw(st.integers(1, 40)),
        draw=draw(st.sampled_from([None, None, 1])),
    )


class Traffic(RuleBasedStateMachine):
    loop: asyncio.AbstractEventLoop
    engine: VllmEngine
    reference: Reference
    ids = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.running: dict[str, tuple[asyncio.Task[Completion], Job]] = {}

    @rule(data=st.data(), count=st.integers(1, 4))
    def arrive(self, data: st.DataObject, count: int) -> None:
        if len(self.running) + count > TIGHT.max_requests:
            self.settle()
        for job in data.draw(st.lists(jobs(self.version), min_size=count, max_size=count)):
            name = f"r{next(self.ids)}"
            work = run(self.engine, name, job.ids, job.plan(), **job.sampling)
            self.running[name] = self.loop.create_task(work), job
        self.wait(0.0)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule()
    def republish(self) -> None:
        """New requests use other bytes under the same names; those in flight keep theirs."""
        self.version = 1 - self.version

    @rule(which=st.integers(0, 9), from_outside=st.booleans())
    def abort(self, which: int, from_outside: bool) -> None:
        if self.running:
            name = list(self.running)[which % len(self.running)]
            task, _ = self.running.pop(name)
            self.engine.abort(name) if from_outside else task.cancel()
            with suppress(asyncio.CancelledError, RequestAborted):  # or it has just ended
                self.loop.run_until_complete(task)

    @rule()
    def settle(self) -> None:
        """Every running request ends, with the tokens and spans of the model alone."""
        found_by = self.loop.run_until_complete(_all([task for task, _ in self.running.values()]))
        for (_, job), found in zip(self.running.values(), found_by, strict=True):
            assert found.spans == job.spans, job
            assert len(found.tokens) == job.tokens, job
            if job.draw is None:
                tokens, sure = self.merged(job)
                assert found.tokens[:sure] == tokens[:sure], job
            else:
                assert found.tokens == self.alone(job), job
        self.running.clear()
        assert_nothing_leaked(self.engine)

    @invariant()
    def is_healthy(self) -> None:
        self.engine.check_health()
        stats = self.engine.stats()
        assert stats.running + stats.waiting <= len(self.running)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:  # the engine is for the next example too
            for task, _ in self.running.values():
                task.cancel()
                with suppress(asyncio.CancelledError, DLPError):
                    self.loop.run_until_complete(task)

    @classmethod
    @cache
    def merged(cls, job: Job) -> tuple[list[int], int]:
        return cls.reference.greedy(job.ids, spans_of(job.spans), job.tokens)

    @classmethod
    @cache
    def alone(cls, job: Job) -> list[int]:
        """What the engine draws when it has nothing else to do."""
        work = run(cls.engine, f"alone{next(cls.ids)}", job.ids, job.plan(), **job.sampling)
        return cls.loop.run_until_complete(work).tokens


async def _all(tasks: list[asyncio.Task[Completion]]) -> list[Completion]:
    async with asyncio.timeout(HANG_S):
        return await asyncio.gather(*tasks)


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("random") / "models"
    tiny_backbone(root / "base")
    for seed, name in enumerate(ADAPTERS):
        targets = LINEAR if seed % 3 == 0 else LINEAR[seed - 1 : seed + 1]
        invoked = {"alora_invocation_tokens": list(INVOCATIONS[name])} if name in INVOCATIONS else {}
        lora = {"r": 1 + seed, "lora_alpha": 16, "target_modules": targets, "task_type": "CAUSAL_LM"} | invoked
        peft_model(tiny_model(), seed, **lora).save_pretrained(root / name)
    Traffic.loop, Traffic.reference = asyncio.new_event_loop(), Reference(root)
    stack = AsyncExitStack()
    entering = stack.enter_async_context(running(root, TIGHT, adapters=ADAPTERS))
    Traffic.engine = Traffic.loop.run_until_complete(entering)
    yield
    Traffic.loop.run_until_complete(stack.aclose())
    Traffic.loop.close()


def test_a_request_that_is_preempted_says_the_same() -> None:
    """Eight begin with one block each, all that there are, and come to 4 each, under mixes that change."""
    mixes = [EMPTY_MIX, *(Mix.of(mix) for mix in ({"a.0": 1.0}, {"c.0": 1.0}, {"a.0": 0.6, "c.0": 0.4}))]
    requests = [
        Job(number, 20, first, mixes[number % 4 - 1], 11 * (number % 2), 40 * (number // 4), 90, None)
        for number, first in enumerate([*mixes, *mixes])
    ]
    before = Traffic.engine._gauges.preempted

    async def together() -> list[Completion]:
        return await asyncio.gather(
            *(run(Traffic.engine, f"p{n}", job.ids, job.plan(), **job.sampling) for n, job in enumerate(requests))
        )

    for job, found in zip(requests, Traffic.loop.run_until_complete(together()), strict=True):
        assert found.spans == job.spans
        assert found.tokens == Traffic.reference.tokens(job.ids, spans_of(found.spans), 90), job
    assert Traffic.engine._gauges.preempted > before
    assert_nothing_leaked(Traffic.engine)


Traffic.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTraffic = Traffic.TestCase


def test_after_all_that_a_request_still_gets_the_whole_cache() -> None:
    """No block was lost: it would wait forever."""
    job = Job(1, 75, Mix.of({"a.0": 1.0}), EMPTY_MIX, 0, 0, TIGHT.cache_tokens - 75, None)
    work = asyncio.wait_for(run(Traffic.engine, "whole", job.ids, job.plan(), **job.sampling), HANG_S)
    tokens, sure = Traffic.merged(job)
    assert Traffic.loop.run_until_complete(work).tokens[:sure] == tokens[:sure]


def test_when_vllm_dies_every_request_is_told_and_the_engine_stops() -> None:
    """The last test: it kills the engine. One request is generating, one waits for its adapter, which is being loaded
    by a worker that does not answer."""
    engine, loop = Traffic.engine, Traffic.loop
    core = psutil.Process(engine._llm.engine_core.resources.engine_manager.processes[0].pid)
    [worker] = [process for process in core.children() if "Worker" in process.name()]

    async def both() -> list[Any]:
        generating = asyncio.create_task(run(engine, "generating", prompt(0), EMPTY_MIX, max_tokens=200))
        await async_wait_for(lambda: engine.stats().tokens_running > len(prompt(0)), "tokens")
        worker.suspend()
        [absent] = [name for name in ADAPTERS if name not in engine.stats().resident][:1]
        loading = asyncio.create_task(run(engine, "loading", prompt(1), Mix.of({absent: 1.0})))
        await async_wait_for(lambda: engine.stats().waiting, "request that waits for its adapter")
        os.kill(core.pid, signal.SIGKILL)
        worker.kill()
        async with asyncio.timeout(HANG_S):
            return await asyncio.gather(generating, loading, return_exceptions=True)

    assert [type(result) for result in loop.run_until_complete(both())] == [EngineFailed, EngineFailed]
    with pytest.raises(EngineFailed):
        engine.check_health()
    assert_nothing_leaked(engine)
