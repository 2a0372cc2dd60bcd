"""A replica's banks: read once for all who ask at the same time, the newest kept, refused ones not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deployments.replicas.banks import BANKS_KEPT, LoadedBanks, SingleFlight
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.errors import BankError, StoreUnavailable, UnknownModel
from dlp_core.store.memory import MemoryStore
from tests.support.banks import Spy, write_bank
from tests.support.waiting import async_wait_for


async def test_those_who_ask_together_share_one_computation() -> None:
    calls: list[str] = []
    go = asyncio.Event()

    async def compute(key: str) -> str:
        calls.append(key)
        await go.wait()
        return key.upper()

    once = SingleFlight(compute, keep=2)
    waiters = [asyncio.create_task(once.get("a")) for _ in range(5)]
    await async_wait_for(lambda: calls, "computation")
    waiters[0].cancel()
    go.set()
    assert await asyncio.gather(*waiters[1:]) == ["A"] * 4
    assert await once.get("a") == "A"
    assert calls == ["a"]


async def test_a_failure_is_not_kept() -> None:
    answers: list[Any] = [StoreUnavailable("down"), "value"]

    async def compute(_: str) -> str:
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

    async def compute(key: str) -> str:
        calls.append(key)
        return key

    once = SingleFlight(compute, keep=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert await once.get(key) == key
    assert calls == ["a", "b", "c", "b"]


@pytest.fixture
def spy(tmp_path: Path) -> Spy:
    """A store with one bank more than are kept."""
    store = MemoryStore("banks")
    for number in range(BANKS_KEPT + 1):
        publish(store, write_bank(tmp_path / str(number), ["a", "b"], seed=number), version=f"v{number}")
    return Spy(store)


def manifests_read(spy: Spy) -> list[str]:
    return [key for method, key in spy.calls if method == "get" and key.startswith("banks/")]


async def test_a_bank_is_read_once_for_its_manifest_and_its_router(spy: Spy, tmp_path: Path) -> None:
    admitted: list[str] = []
    cache = DiskCache(tmp_path / "cache", 10**7)
    banks = LoadedBanks(spy, cache, admit=lambda manifest: admitted.append(manifest.version))
    manifest, router, *_ = await asyncio.gather(
        banks.manifest("v0"), banks.router("v0"), banks.manifest("v0"), banks.router("v0")
    )
    assert (manifest.version, sorted(router.labels)) == ("v0", ["a", "b"])
    assert await banks.router("v0") is router
    assert manifests_read(spy) == ["banks/v0.json"]
    assert [key.rpartition("/")[2] for method, key in spy.calls if method == "download"].count("router.json") == 1
    assert admitted == ["v0"]


async def test_the_banks_of_requests_under_way_are_kept(spy: Spy, tmp_path: Path) -> None:
    banks = LoadedBanks(spy, DiskCache(tmp_path / "cache", 10**7))
    for number in (*range(BANKS_KEPT), 0, BANKS_KEPT, 0, 1):
        await banks.manifest(f"v{number}")
    assert manifests_read(spy) == [f"banks/v{number}.json" for number in (*range(BANKS_KEPT + 1), 1)]


async def test_a_bank_that_is_refused_is_looked_at_again(spy: Spy, tmp_path: Path) -> None:
    refuse = True

    def admit(manifest: BankManifest) -> None:
        if refuse:
            raise BankError(f"bank {manifest.version} is for another base model")

    banks = LoadedBanks(spy, DiskCache(tmp_path / "cache", 10**7), admit=admit)
    for asked in (banks.manifest, banks.router):
        with pytest.raises(BankError, match="another base model"):
            await asked("v0")
    with pytest.raises(UnknownModel, match="v9"):
        await banks.manifest("v9")
    refuse = False
    assert sorted((await banks.router("v0")).labels) == ["a", "b"]
