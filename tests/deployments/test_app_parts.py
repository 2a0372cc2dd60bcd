"""The parts of the application that need no cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError, TaskCancelledError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.metrics import Histogram

from deployments.observe.metrics import EngineMetrics, RoutingMetrics, TokenStopwatch
from deployments.replicas.errors import from_ray
from deployments.replicas.single_flight import SingleFlight
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.follower import BankFollower, NoUsableBank, Refusal
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.source import BankSource, qualified, successors
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.errors import (
    AdapterRefused,
    BankError,
    DeadlineExceeded,
    EngineFailed,
    EngineFull,
    StoreUnavailable,
    UnknownModel,
)
from dlp_core.generation.messages import Finished
from dlp_core.mix import EMPTY_MIX, Mix, Span
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import Spy
from tests.support.tiny import BASE_ID, peft_adapter


@pytest.fixture
def store(request: pytest.FixtureRequest) -> AdapterStore:
    return MemoryStore(request.node.name)


def publish_bank(store: AdapterStore, folder: Path, seeds: dict[str, int], version: str) -> BankManifest:
    for name, seed in seeds.items():
        peft_adapter(folder / version / "adapters" / name, seed)
    (folder / version / "bank.json").write_text(f'{{"base_model": "{BASE_ID}"}}')
    return publish(store, folder / version, version=version)


# --- errors of Ray


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackPressureError(7, 5), EngineFull),
        (ActorDiedError(), EngineFailed),
        (ActorUnavailableError("gone", None), EngineFailed),
        (ReplicaUnavailableError("r"), EngineFailed),
        (TaskCancelledError(), EngineFailed),
        (DeploymentUnavailableError(DeploymentID("d", "a")), EngineFailed),
        (GetTimeoutError(), DeadlineExceeded),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_handle_raises_becomes_ours(error: Exception, kind: type[Exception]) -> None:
    assert type(from_ray(error)) is kind


def test_an_error_of_a_replica_arrives_as_it_was_raised() -> None:
    raised = EngineFull("64 requests wait", retry_after=2.0)
    wrapped = RayTaskError("generate", "Traceback ...", raised).as_instanceof_cause()
    found = from_ray(wrapped)
    assert isinstance(found, EngineFull)
    assert (found.message, found.retry_after) == ("64 requests wait", 2.0)


def test_a_bug_stays_a_bug() -> None:
    wrapped = RayTaskError("generate", "Traceback ...", KeyError("x")).as_instanceof_cause()
    assert isinstance(from_ray(wrapped), KeyError)


# --- one computation per key


async def test_those_who_ask_together_share_one_computation() -> None:
    calls: list[str] = []
    go = threading.Event()

    def compute(key: str) -> str:
        calls.append(key)
        go.wait(5)
        return key.upper()

    once = SingleFlight(compute, keep=2)
    waiters = [asyncio.create_task(once.get("a")) for _ in range(5)]
    await asyncio.sleep(0.05)
    waiters[0].cancel()
    go.set()
    assert await asyncio.gather(*waiters[1:]) == ["A"] * 4
    assert await once.get("a") == "A"
    assert calls == ["a"]


async def test_a_failure_is_not_kept() -> None:
    answers: list[Any] = [StoreUnavailable("down"), "value"]

    def compute(_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    once = SingleFlight(compute, keep=2)
    with pytest.raises(StoreUnavailable, match="down"):
        await once.get("a")
    assert await once.get("a") == "value"


async def test_the_least_recently_used_value_goes_first() -> None:
    calls: list[str] = []
    once = SingleFlight(lambda key: calls.append(key) or key, keep=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert await once.get(key) == key
    assert calls == ["a", "b", "c", "b"]


# --- the bank that serves


async def test_the_follower_waits_follows_and_survives(store: AdapterStore, tmp_path: Path) -> None:
    prepared: list[str] = []
    broken = {"two"}

    async def prepare(bank: BankManifest) -> None:
        if bank.version in broken:
            raise EngineFailed("no replica yet")
        prepared.append(bank.version)

    follower = BankFollower(store, poll_s=0.02, prepare=prepare)
    following = asyncio.create_task(follower.follow())
    await asyncio.sleep(0.05)
    with pytest.raises(StoreUnavailable, match="no bank is published") as refused:
        follower.bank()
    assert refused.value.retry_after == 0.02

    publish_bank(store, tmp_path, {"sql": 1}, "one")
    await serving(follower, "one")
    publish_bank(store, tmp_path, {"sql": 1, "cron": 2}, "two")
    await asyncio.sleep(0.1)
    assert follower.bank().version == "one"  # two is not ready
    broken.clear()
    await serving(follower, "two")

    store.delete("current.json")
    await asyncio.sleep(0.1)
    assert follower.bank().version == "two"
    assert prepared == ["one", "two"]
    assert not following.done()
    following.cancel()


async def test_a_bank_that_no_waiting_makes_fit_is_told_apart(store: AdapterStore, tmp_path: Path) -> None:
    """A command that waits for the application gives up at once on the code `bank_invalid`."""

    async def prepare(bank: BankManifest) -> None:
        if bank.version == "one":
            raise BankError("bank one is for base model 'other'; this replica runs 'tiny'")

    publish_bank(store, tmp_path, {"sql": 1}, "one")
    follower = BankFollower(store, poll_s=0.02, prepare=prepare)
    following = asyncio.create_task(follower.follow())
    await asyncio.sleep(0.1)
    with pytest.raises(NoUsableBank, match="this replica runs 'tiny'") as refused:
        follower.bank()
    assert (refused.value.status, refused.value.code) == (503, "bank_invalid")
    publish_bank(store, tmp_path, {"sql": 2}, "two")
    await serving(follower, "two")
    following.cancel()


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (None, True),
        (StoreUnavailable("down"), True),
        (BankError("unfit"), True),
        (EngineFailed("a replica died"), False),
    ],
    ids=str,
)
async def test_it_is_settled_by_a_bank_or_by_a_reason_not_by_a_lost_replica(
    store: AdapterStore, tmp_path: Path, error: Exception | None, known: bool
) -> None:
    """Until then a new ingress replica takes no requests."""
    publish_bank(store, tmp_path, {"sql": 1}, "one")

    async def prepare(bank: BankManifest) -> None:
        if error is not None:
            raise error

    follower = BankFollower(store, poll_s=0.02, prepare=prepare)
    following = asyncio.create_task(follower.follow())
    await asyncio.sleep(0.2)
    assert follower.settled.is_set() == known
    error = None
    await serving(follower, "one")
    assert follower.settled.is_set()
    following.cancel()


async def test_an_unchanged_pointer_is_not_read_again(store: AdapterStore, tmp_path: Path) -> None:
    publish_bank(store, tmp_path, {"sql": 1}, "one")
    spy = Spy(store)
    follower = BankFollower(spy, poll_s=0.02, prepare=ready)
    await follower.look()
    before = len(spy.calls)
    for _ in range(3):
        await follower.look()
    assert [method for method, _ in spy.calls[before:]] == ["get_if_changed"] * 3


async def test_a_look_says_why_a_bank_cannot_take_over(store: AdapterStore, tmp_path: Path) -> None:
    publish_bank(store, tmp_path, {"sql": 1}, "one")

    async def prepare(bank: BankManifest) -> None:
        if bank.version == "two":
            raise AdapterRefused("adapter 'sql': rank 0")

    follower = BankFollower(store, poll_s=60, prepare=prepare)
    await follower.look()
    publish_bank(store, tmp_path, {"sql": 2}, "two")
    with pytest.raises(AdapterRefused, match="rank 0"):
        await follower.look()
    assert follower.bank().version == "one"
    assert follower.refused == Refusal("two", "adapter 'sql': rank 0")
    with pytest.raises(AdapterRefused):  # it is tried again: files can be repaired
        await follower.look()
    rollback(store)
    await follower.look()
    assert (follower.bank().version, follower.refused) == ("one", None)


async def test_a_replica_that_starts_under_a_refused_bank_serves_the_one_before(
    store: AdapterStore, tmp_path: Path
) -> None:
    publish_bank(store, tmp_path, {"sql": 1}, "one")
    publish_bank(store, tmp_path, {"sql": 2}, "two")

    async def prepare(bank: BankManifest) -> None:
        if bank.version == "two":
            raise BankError("bank two is for another base model")

    follower = BankFollower(store, poll_s=60, prepare=prepare)
    with pytest.raises(BankError):
        await follower.look()
    assert follower.bank().version == "one"
    assert follower.refused == Refusal("two", "bank two is for another base model")


async def ready(bank: BankManifest) -> None:
    return None


async def serving(follower: BankFollower, version: str) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                if follower.bank().version == version:
                    return
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.01)


def test_what_a_bank_has_instead_of_what_is_resident(store: AdapterStore, tmp_path: Path) -> None:
    one = publish_bank(store, tmp_path, {"sql": 1, "cron": 5}, "one")
    two = publish_bank(store, tmp_path, {"sql": 2, "cron": 5, "dates": 3}, "two")
    (sql,) = qualified(Mix.of({"sql": 1.0}), one).names
    (cron,) = qualified(Mix.of({"cron": 1.0}), one).names
    assert successors([sql, cron], two) == list(qualified(Mix.of({"sql": 1.0}), two).names)
    assert successors([], two) == successors([cron], two) == []


def test_two_banks_are_served_side_by_side(store: AdapterStore, tmp_path: Path) -> None:
    """The same name with other bytes is another adapter, as long as a request of the old bank runs."""
    one = publish_bank(store, tmp_path, {"sql": 1}, "one")
    two = publish_bank(store, tmp_path, {"sql": 2, "cron": 3}, "two")
    source = BankSource(store, DiskCache(tmp_path / "cache", 10**7))
    source.add(one)
    source.add(two)
    mixes = [qualified(Mix.of({"sql": 0.5}), bank) for bank in (one, two)]
    (old,), (new,) = (mix.names for mix in mixes)
    assert old != new
    assert source.digest(old) == one.adapters[0].digest
    factors = [next(iter(source.load(name).modules.values())).a_RD for name in (old, new)]
    assert not factors[0].equal(factors[1])
    with pytest.raises(UnknownModel, match="cron"):
        qualified(Mix.of({"cron": 1.0}), one)
    with pytest.raises(UnknownModel):
        source.load("sql")


# --- metrics


def test_metrics_take_every_decision_and_completion() -> None:
    """Ray refuses wrong tags and bounds when a value is recorded, not before."""
    routing, engine = RoutingMetrics(), EngineMetrics()
    options = RoutingOptions("auto", 0.9, 3)
    routing.decided(Decision(options, "b", Mix.of({"sql": 1.0}), {"sql": "d"}, "routed", "r", 0.9, 0.1, {}), 0.001)
    routing.decided(Decision(options, "b", EMPTY_MIX, {}, "none_of_these", "r", 0.1, 0.9, {}), 0.001)
    routing.decided(Decision(options, "b", EMPTY_MIX, {}, "base"), 0.001)
    for tier in ("disk", "host"):
        engine.loaded("sql@1a2b", tier, 0.1)
    engine.loaded("sql@1a2b", "device", 0.1)
    engine.finished(Finished("stop", 5, 0, (Span(0, 5, EMPTY_MIX),)))
    engine.stopwatch().tokens(1)


def test_the_stopwatch_times_the_first_token_and_then_each() -> None:
    class Recorder(Histogram):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
            self.seen.append(value)

    first, between = Recorder(), Recorder()
    watch = TokenStopwatch(first, between)
    time.sleep(0.02)
    watch.tokens(0)  # an event without tokens is not a token
    watch.tokens(1)
    time.sleep(0.04)
    watch.tokens(4)
    assert len(first.seen) == len(between.seen) == 1
    assert first.seen[0] >= 0.02
    assert 0.01 <= between.seen[0] < 0.04
