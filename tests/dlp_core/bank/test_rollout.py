"""What ingress replicas do with a canary and a shadow: several of them over one store, without a leader."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dlp_core.bank.canary import promote, start_canary, start_shadow, stop_canary
from dlp_core.bank.follower import BankFollower
from dlp_core.bank.manifest import BankManifest, CanaryEnd
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.reading import current
from dlp_core.bank.rollout import Picked, Rollout, ShadowCounts, due, is_a_failure, read_report
from dlp_core.errors import (
    AdapterRefused,
    BankError,
    DeadlineExceeded,
    DLPError,
    EngineFull,
    InvalidRequest,
    RequestAborted,
    StoreUnavailable,
    UnknownModel,
)
from dlp_core.fleet.trial import Counts, Outcome
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import Spy, write_bank
from tests.support.waiting import async_wait_for


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    """One serves, two and three are staged."""
    store = MemoryStore(request.node.name)
    publish(store, write_bank(tmp_path / "one", ["a"]), version="one")
    for seed, version in enumerate(("two", "three"), 1):
        publish(store, write_bank(tmp_path / version, ["a"], seed=seed), version=version, stage=True)
    return store


class Replica:
    """An ingress replica as far as banks go. `unfit` versions are refused by its backbones."""

    def __init__(self, store: AdapterStore, name: str = "a", *, unfit: tuple[str, ...] = ()) -> None:
        self.ends: list[CanaryEnd] = []
        self.unfit = unfit

        async def prepare(bank: BankManifest) -> None:
            if bank.version in self.unfit:
                raise BankError(f"bank {bank.version} is for another base model")

        self.follower = BankFollower(store, poll_s=60, prepare=prepare)
        self.rollout = Rollout(store, self.follower, replica=name, on_end=self.ends.append)
        self._asked = 0

    def pick(self, version: str | None = None, user: str | None = None) -> Picked:
        self._asked += 1
        return self.rollout.pick(version=version, user=user, key=None, request=f"{id(self)}-{self._asked}")

    def rate(self, negative: bool, *, issued: float | None = None) -> None:
        """Rate the answer to the latest request."""
        issued = datetime.now(UTC).timestamp() if issued is None else issued
        self.rollout.rated(f"{id(self)}-{self._asked}", issued, negative=negative, user=None, key=None)

    def serve(self, requests: int, outcome: Callable[[Picked], Outcome] = lambda picked: Outcome()) -> list[str]:
        picks = [self.pick() for _ in range(requests)]
        for picked in picks:
            self.rollout.ended(picked, outcome(picked))
        return [picked.bank.version for picked in picks]


def canary_fails(picked: Picked) -> Outcome:
    return Outcome(error=picked.role == "canary")


async def test_requests_are_shared_between_the_banks(store: AdapterStore) -> None:
    replica = Replica(store)
    await replica.follower.look()
    assert set(replica.serve(50)) == {"one"}
    start_canary(store, "two", share=0.5)
    await replica.follower.look()
    assert set(replica.serve(50)) == {"one", "two"}
    assert len({replica.pick(user="ada").bank.version for _ in range(50)}) == 1
    stop_canary(store)
    await replica.follower.look()
    assert set(replica.serve(50)) == {"one"}


async def test_a_version_that_is_in_use_can_be_asked_for_and_does_not_count(store: AdapterStore) -> None:
    start_canary(store, "two", share=0.5)
    start_shadow(store, "three")
    replica = Replica(store)
    await replica.follower.look()
    for version, role in (("one", "serving"), ("two", "canary"), ("three", "shadow")):
        picked = replica.pick(version)
        assert (picked.bank.version, picked.role, picked.draw) == (version, role, None)
        replica.rollout.ended(picked, Outcome(error=True))
    await replica.rollout.turn()
    assert replica.rollout.report()["canary"]["counts"]["canary"]["requests"] == 0
    with pytest.raises(UnknownModel, match="'four' is not in use; in use: one, two, three") as unknown:
        replica.pick("four")
    assert unknown.value.param == "dlp.bank"


async def test_a_canary_that_fails_is_rolled_back_by_what_all_replicas_saw(store: AdapterStore) -> None:
    """No replica has seen enough by itself."""
    start_canary(store, "two", share=0.5)
    replicas = [Replica(store, name) for name in "abcd"]
    for replica in replicas:
        await replica.follower.look()
        seen: list[str] = []
        while seen.count("two") < 5:
            seen += replica.serve(1, canary_fails)
    await replicas[0].rollout.turn()
    assert replicas[0].ends == []
    for replica in replicas[1:]:
        await replica.rollout.turn()
    [end] = [end for replica in replicas for end in replica.ends]
    assert (end.version, end.outcome) == ("two", "rolled_back")
    assert re.fullmatch(r"errors: 15 of the canary's 15 requests, 0 of the serving bank's \d+", end.reason)
    for replica in replicas:
        await replica.follower.look()
        assert set(replica.serve(20)) == {"one"}
        report = replica.rollout.report()
        assert report["canary"] is None
        assert report["canary_end"]["reason"] == end.reason
        await replica.rollout.turn()
    assert sum(len(replica.ends) for replica in replicas) == 1


async def test_bad_feedback_and_abstentions_roll_back_too(store: AdapterStore) -> None:
    for reason, worse in (
        ("negative feedback: ", "negative"),
        ("no adapter chosen: ", "abstained"),
    ):
        start_canary(store, "two", share=0.2, sticky_by="none")
        replica = Replica(store)
        await replica.follower.look()
        for _ in range(150):
            picked = replica.pick()
            bad = picked.role == "canary"
            replica.rollout.ended(picked, Outcome(abstained=bad and worse == "abstained"))
            replica.rate(bad and worse == "negative")
        await replica.rollout.turn()
        [end] = replica.ends
        assert end.reason.startswith(reason)
        assert replica.pick().bank.version == "one"


async def test_an_answer_is_rated_once_and_one_from_before_the_trial_never(store: AdapterStore) -> None:
    start_canary(store, "two", share=0.5, sticky_by="none")
    replica = Replica(store)
    await replica.follower.look()
    replica.pick()
    replica.rate(True, issued=datetime.now(UTC).timestamp() - 3600)
    for _ in range(200):
        replica.rate(True)
    await replica.rollout.turn()
    counts = replica.rollout.report()["canary"]["counts"]
    assert counts["serving"]["rated"] + counts["canary"]["rated"] == 1


async def test_a_good_canary_is_promoted_by_its_rule_alone(store: AdapterStore) -> None:
    start_canary(store, "two", share=0.5)
    replica = Replica(store)
    await replica.follower.look()
    replica.serve(400)
    await replica.rollout.turn()
    assert replica.rollout.report()["canary"]["state"] == "running"
    start_canary(store, "two", share=0.5, promote_after_requests=40)
    await replica.follower.look()
    replica.serve(20)
    await replica.rollout.turn()
    assert replica.ends == []
    replica.serve(300)
    await replica.rollout.turn()
    [end] = replica.ends
    assert (end.outcome, current(store)[0].version) == ("promoted", "two")
    assert set(replica.serve(20)) == {"two"}


def test_when_a_canary_is_due(store: AdapterStore) -> None:
    plain = start_canary(store, "two")
    later = plain.began + timedelta(hours=3)
    counts = Counts(canary=100)
    assert due(plain, counts, later) is None
    both = plain.model_copy(update={"promote_after_requests": 100, "promote_after_hours": 2.0})
    assert due(both, counts, later) == "no alarm after 100 requests and 2 hours"
    assert due(both, counts, plain.began + timedelta(hours=1)) is None
    assert due(both, Counts(canary=99), later) is None


async def test_a_canary_that_cannot_be_loaded_never_serves(store: AdapterStore) -> None:
    replica = Replica(store, unfit=("two",))
    await replica.follower.look()
    start_canary(store, "two", share=0.9)
    start_shadow(store, "three")
    with pytest.raises(BankError, match="canary two: bank two is for another base model"):
        await replica.follower.look()
    assert set(replica.serve(50)) == {"one"}
    assert replica.follower.shadow is not None, "the shadow is another bank"
    report = replica.rollout.report()
    assert report["canary"]["state"] == "refused"
    assert "another base model" in report["canary"]["reason"]
    await replica.rollout.turn()
    assert replica.rollout.report()["canary"]["counts"]["serving"]["requests"] == 0
    replica.unfit = ()
    await replica.follower.look()
    assert "two" in replica.serve(50)
    assert replica.rollout.report()["canary"]["state"] == "running"


async def test_a_refused_canary_can_be_stopped(store: AdapterStore) -> None:
    replica = Replica(store, unfit=("two",))
    start_canary(store, "two")
    with pytest.raises(BankError):
        await replica.follower.look()
    stop_canary(store)
    await replica.follower.look()
    assert replica.rollout.report()["canary"] is None
    assert replica.follower.refused_beside == {}


async def test_a_promotion_and_a_rollback_take_the_trial_along(store: AdapterStore) -> None:
    replica = Replica(store)
    start_canary(store, "two", share=0.5)
    await replica.follower.look()
    picked = next(picked for picked in iter(replica.pick, None) if picked.role == "canary")
    promote(store)
    await replica.follower.look()
    replica.rollout.ended(picked, Outcome(error=True))  # it began before
    assert set(replica.serve(20)) == {"two"}
    rollback(store)
    start_canary(store, "three", share=0.5)
    await replica.follower.look()
    replica.rollout.ended(picked, Outcome(error=True))
    await replica.rollout.turn()
    assert replica.rollout.report()["canary"]["counts"]["canary"]["error"] == 0


async def test_counts_outlive_their_replica_and_are_written_when_they_change(store: AdapterStore) -> None:
    canary = start_canary(store, "two", share=0.5)
    gone = Replica(store, "gone")
    await gone.follower.look()
    gone.serve(30)
    await gone.rollout.turn()
    spy = Spy(store)
    after = Replica(spy, "after")
    await after.follower.look()
    after.serve(12)
    for _ in range(3):
        await after.rollout.turn()
    assert spy.writes == [f"trials/{canary.id}/after.json"]
    counts = after.rollout.report()["canary"]["counts"]
    assert counts["serving"]["requests"] + counts["canary"]["requests"] == 42
    assert read_report(store, current(store)[0])["canary"]["counts"] == counts
    json.dumps(after.rollout.report())


async def test_counts_that_are_none_are_left_out(store: AdapterStore) -> None:
    canary = start_canary(store, "two", share=0.5)
    for name, content in (("x", b"{"), ("y", b'{"serving": -5}'), ("z", b"[]")):
        store.put(f"trials/{canary.id}/{name}.json", content)
    replica = Replica(store)
    await replica.follower.look()
    replica.serve(8)
    await replica.rollout.turn()
    counts = replica.rollout.report()["canary"]["counts"]
    assert counts["serving"]["requests"] + counts["canary"]["requests"] == 8


async def test_a_store_that_is_down_ends_no_request(store: AdapterStore) -> None:
    start_canary(store, "two", share=0.5)
    spy = Spy(store, fail_after=0)
    replica = Replica(spy)
    await replica.follower.look()
    replica.serve(200, canary_fails)
    with pytest.raises(StoreUnavailable):
        await replica.rollout.turn()
    assert set(replica.serve(20)) == {"one", "two"}
    following = asyncio.create_task(replica.rollout.follow(0.01))
    await async_wait_for(lambda: replica.rollout.problem, "problem")
    assert "killed" in replica.rollout.report()["problem"]
    spy.fail_after = None
    await async_wait_for(lambda: replica.ends, "end of the canary")
    await async_wait_for(lambda: replica.rollout.problem is None, "end of the problem")
    following.cancel()
    assert [end.outcome for end in replica.ends] == ["rolled_back"]


async def test_the_shadows_agreement_is_of_all_replicas(store: AdapterStore) -> None:
    start_shadow(store, "three")
    replicas = [Replica(store, name) for name in "ab"]
    for replica in replicas:
        await replica.follower.look()
        replica.rollout.compared("three", ShadowCounts(mixes=4, same_mixes=3))
        replica.rollout.compared("gone", ShadowCounts(mixes=9))
        await replica.rollout.turn()
    found = replicas[1].rollout.report()["shadow"]
    assert (found["version"], found["counts"]["mixes"], found["counts"]["same_mixes"]) == ("three", 8, 6)
    assert read_report(store, current(store)[0])["shadow"] == found


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (DLPError("bug"), True),
        (DeadlineExceeded("late"), True),
        (AdapterRefused("rank 0"), True),
        (UnknownModel("no such adapter"), True),
        (InvalidRequest("wrong field"), False),
        (EngineFull("full"), False),
        (RequestAborted("gone"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_errors_count(error: DLPError, *, counts: bool) -> None:
    assert is_a_failure(error) == counts


def test_the_clock_of_a_trial_is_utc(store: AdapterStore) -> None:
    assert abs(start_canary(store, "two").began - datetime.now(UTC)) < timedelta(hours=1)
