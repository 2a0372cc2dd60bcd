"""The engine under random arrivals, spans, aborts, evictions and republished adapters, one of them activated, in a
cache far too small.

Whatever else happens, a request gets the tokens it gets alone, every request ends exactly once, and no pin, slot or
block is leaked.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan, Sampling, TokenLogprob
from dlp_core.errors import DLPError, RequestAborted
from dlp_core.mix import EMPTY_MIX, Mix, Span
from tests.dlp_core.engine.test_engine import assert_nothing_leaked, build, prompt
from tests.support.followers import every
from tests.support.tiny import peft_adapter
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.model

ADAPTERS = [f"{name}.{version}" for name in "abcd" for version in (0, 1)]
INVOCATIONS = {"c.0": prompt(0, 12)[10:], "c.1": prompt(1, 6)[5:]}
"""Of the activated adapters: tokens 10 and 11 of one prompt, token 5 of another."""
SLOTS = 3
TIGHT = EngineConfig(slots=SLOTS, max_requests=1000, page_tokens=4, cache_tokens=96, batch_tokens=16)
ROOMY = EngineConfig(slots=SLOTS, page_tokens=4, cache_tokens=1024, batch_tokens=64)


@dataclass(frozen=True)
class Job:
    """A request; hashable, so that its run alone is cached."""

    seed: int
    length: int
    first: Mix
    second: Mix
    boundary: int
    every: int
    tokens: int
    draw: int | None

    @property
    def request(self) -> tuple[list[int], Plan, Sampling]:
        spans = ((0, self.first), (self.boundary, self.second))[: 1 + (0 < self.boundary <= self.length)]
        follow = every(self.every, self.first, self.second, EMPTY_MIX)() if self.every else None
        draw: dict[str, Any] = {} if self.draw is None else {"temperature": 1.0, "seed": self.draw}
        return prompt(self.seed, self.length), Plan(spans, follow), Sampling(self.tokens, ignore_eos=True, **draw)


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
        length=draw(st.integers(1, 30)),
        first=first,
        second=second,
        boundary=draw(st.integers(0, 30)),
        every=draw(st.sampled_from([0, 0, 3, 5])),
        tokens=draw(st.integers(1, 24)),
        draw=draw(st.sampled_from([None, None, 1])),
    )


NEAR_TIE = 1e-4
"""Between the log-probabilities of two tokens: what less is, another batch's rounding may turn around."""


@dataclass
class Completion:
    tokens: list[int]
    spans: tuple[Span, ...]
    logprobs: list[TokenLogprob]

    @property
    def sure(self) -> int:
        """Tokens before the first whose runner-up was as likely. Greedy completions with log-probabilities only."""
        gaps = [one.top[0][1] - one.top[1][1] for one in self.logprobs]
        return next((number for number, gap in enumerate(gaps) if gap < NEAR_TIE), len(self.tokens))


async def run(engine: FusedEngine, request_id: str, job: Job, **sampling: Any) -> Completion:
    found = Completion([], (), [])
    ends = 0
    ids, plan, wanted = job.request
    async for event in engine.submit(ids, plan, replace(wanted, **sampling), request_id=request_id):
        found.tokens += event.token_ids
        found.logprobs += event.logprobs
        found.spans = event.spans
        ends += event.finish_reason is not None
    assert ends == 1
    return found


class Traffic(RuleBasedStateMachine):
    loop: asyncio.AbstractEventLoop
    folders: dict[str, Path]
    roomy: FusedEngine
    ids = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.tight = self.loop.run_until_complete(build(self.folders, TIGHT))
        self.version = 0
        self.running: dict[str, tuple[asyncio.Task[Any], Job]] = {}

    @rule(data=st.data(), count=st.integers(1, 4))
    def arrive(self, data: st.DataObject, count: int) -> None:
        for job in data.draw(st.lists(jobs(self.version), min_size=count, max_size=count)):
            request_id = f"r{next(self.ids)}"
            self.running[request_id] = self.loop.create_task(run(self.tight, request_id, job)), job
        self.wait(0.0)

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.03]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule()
    def republish(self) -> None:
        """New requests use other bytes under the same names; those in flight keep theirs."""
        self.version = 1 - self.version

    @rule(which=st.integers(0, 9), from_outside=st.booleans())
    def abort(self, which: int, from_outside: bool) -> None:
        if self.running:
            request_id = list(self.running)[which % len(self.running)]
            task, _ = self.running.pop(request_id)
            self.tight.abort(request_id) if from_outside else task.cancel()
            with suppress(asyncio.CancelledError, RequestAborted):  # or it has just ended
                self.loop.run_until_complete(task)

    @rule()
    def settle(self) -> None:
        """Every running request ends, with the tokens and spans it has alone."""
        results = [self.loop.run_until_complete(asyncio.wait_for(task, HANG_S)) for task, _ in self.running.values()]
        for (_, job), result in zip(self.running.values(), results, strict=True):
            alone = self.alone(job)
            sure = alone.sure if job.draw is None else None
            assert result.tokens[:sure] == alone.tokens[:sure], job
            assert (len(result.tokens), result.spans) == (len(alone.tokens), alone.spans), job
        self.running.clear()
        assert_nothing_leaked(self.tight)

    @invariant()
    def is_healthy(self) -> None:
        self.tight.check_health()
        stats = self.tight.stats()
        assert stats.running + stats.waiting <= len(self.running)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.loop.run_until_complete(self.tight.stop())
            for task, _ in self.running.values():
                with suppress(asyncio.CancelledError, DLPError):
                    self.loop.run_until_complete(task)

    @classmethod
    @cache
    def alone(cls, job: Job) -> Completion:
        return cls.loop.run_until_complete(run(cls.roomy, f"alone-{next(cls.ids)}", job, logprobs=2))


@pytest.fixture(scope="module", autouse=True)
def solo_engine() -> Any:
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for seed, name in enumerate(ADAPTERS):
            invoked = {"alora_invocation_tokens": INVOCATIONS[name]} if name in INVOCATIONS else {}
            lora = {"r": 1 + seed, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | invoked
            folders[name] = peft_adapter(Path(root) / name, seed, **lora)
        Traffic.loop, Traffic.folders = asyncio.new_event_loop(), folders
        Traffic.roomy = Traffic.loop.run_until_complete(build(folders, ROOMY))
        yield
        Traffic.loop.run_until_complete(Traffic.roomy.stop())
        Traffic.loop.close()


Traffic.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTraffic = Traffic.TestCase
