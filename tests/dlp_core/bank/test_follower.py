"""The follower: which published bank serves, when another takes over, and why one does not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from dlp_core.bank.follower import BankFollower, NoUsableBank, Refusal
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import rollback
from dlp_core.errors import AdapterRefused, BankError, EngineFailed, StoreUnavailable
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import Spy, publish_bank
from tests.support.waiting import async_wait_for


@pytest.fixture
def store(request: pytest.FixtureRequest) -> AdapterStore:
    return MemoryStore(request.node.name)


async def test_the_follower_waits_follows_and_survives(store: AdapterStore, tmp_path: Path) -> None:
    prepared: list[str] = []
    looks: list[str] = []
    tried: list[str] = []
    broken = {"two"}

    async def prepare(bank: BankManifest) -> None:
        tried.append(bank.version)
        if bank.version in broken:
            raise EngineFailed("no replica yet")
        prepared.append(bank.version)

    follower = BankFollower(store, poll_s=0.02, prepare=prepare, on_poll=lambda: looks.append(""))
    following = asyncio.create_task(follower.follow())
    await async_wait_for(lambda: looks, "look")
    with pytest.raises(StoreUnavailable, match="no bank is published") as refused:
        follower.bank()
    assert refused.value.retry_after == 0.02

    publish_bank(store, tmp_path, {"sql": 1}, "one")
    await serving(follower, "one")
    publish_bank(store, tmp_path, {"sql": 1, "cron": 2}, "two")
    await async_wait_for(lambda: tried.count("two") > 1, "second attempt")
    assert follower.bank().version == "one"  # two is not ready
    broken.clear()
    await serving(follower, "two")

    store.delete("current.json")
    looks.clear()
    await async_wait_for(lambda: len(looks) > 2, "look at what is no more")
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
    await async_wait_for(lambda: follower.refused, "refusal")
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

    looks: list[str] = []
    follower = BankFollower(store, poll_s=0.02, prepare=prepare, on_poll=lambda: looks.append(""))
    following = asyncio.create_task(follower.follow())
    await async_wait_for(lambda: len(looks) > 1, "second look")
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
    def serves() -> bool:
        with suppress(StoreUnavailable):
            return follower.bank().version == version
        return False

    await async_wait_for(serves, f"bank {version}")
