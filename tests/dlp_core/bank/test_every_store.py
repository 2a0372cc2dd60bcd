"""A bank is checked in the same way, and refused in the same words, whatever kind of store it is in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlp_core.adapter.contents import PICKLED_WEIGHTS
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.follower import BankFollower
from dlp_core.bank.manifest import BankManifest, manifest_key
from dlp_core.bank.publish import publish, rollback, verify
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import BankSource
from dlp_core.errors import AdapterRefused, BankError, Conflict, DigestMismatch, DLPError
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import upload, write_bank
from tests.support.stores import KINDS, empty_place
from tests.support.waiting import async_wait_for

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    return open_store(empty_place(request.param, request, tmp_path))


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10**7)


def said(store: AdapterStore, call: Callable[[], object], expected: type[DLPError]) -> str:
    """The words of an error, without those that name the place."""
    with pytest.raises(DLPError) as refused:
        call()
    assert type(refused.value) is expected
    return refused.value.message.replace(store.uri, "STORE")


def load(store: AdapterStore, cache: DiskCache, manifest: BankManifest) -> None:
    source = BankSource(store, cache)
    source.add(manifest)
    source.load(manifest.adapters[0].qualified_name)


def test_a_manifest_that_lists_a_pickle(store: AdapterStore, tmp_path: Path) -> None:
    manifest = publish(store, write_bank(tmp_path / "bank"))
    key = manifest_key(manifest.version)
    store.put(key, store.get(key).data.replace(WEIGHTS.encode(), b"adapter_model.bin"))
    assert said(store, lambda: load_manifest(store, manifest.version), BankError) == (
        f"{key!r} in STORE is damaged: adapters.0: Value error, files must be exactly adapter_config.json, {WEIGHTS}; "
        "roll back or publish again"
    )


def test_a_bank_folder_with_a_pickle(store: AdapterStore, tmp_path: Path) -> None:
    """It is left behind, and where it is all there is, it is refused."""
    bank, elsewhere = write_bank(tmp_path / "bank"), open_store("memory://elsewhere")
    adapter = bank / "adapters" / "alpha"
    (adapter / "training_args.bin").write_bytes(b"\x80\x04.")
    upload(bank, store.uri)
    with local_copy(store.uri) as folder:
        publish(elsewhere, folder)
    assert not [info.key for info in elsewhere.list() if info.key.endswith(".bin")]
    store.put(f"adapters/alpha/{PICKLED_WEIGHTS}", b"\x80\x04.")
    store.delete(f"adapters/alpha/{WEIGHTS}")

    def publish_it() -> None:
        with local_copy(store.uri) as folder:
            publish(elsewhere, folder)

    assert said(store, publish_it, AdapterRefused).startswith(
        f"adapter 'alpha': {WEIGHTS} is missing from its folder; {PICKLED_WEIGHTS} is a pickle and is never opened, "
        "because loading one can run code; "
    )


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_an_object_that_is_not_what_the_manifest_says(
    store: AdapterStore, cache: DiskCache, tmp_path: Path, change: str
) -> None:
    manifest = publish(store, write_bank(tmp_path / "bank"))
    entry = manifest.adapters[0]
    file = entry.files[1]
    key = entry.key(WEIGHTS)
    data = store.get(key).data
    store.put(key, {"longer": data + b"x", "shorter": data[:-1], "other": bytes(len(data))}[change])
    message = said(store, lambda: load(store, cache, manifest), DigestMismatch)
    assert f"object {key!r} in STORE" in message
    if change == "longer":
        assert f"is longer than the {file.size} bytes in its manifest; publish it again" in message
    else:
        assert f"expected sha256 {file.sha256} ({file.size} bytes)" in message
        assert "delete the object and publish it again" in message
    assert len(verify(store).problems) == 1


def test_another_manifest_than_the_pointer_names(store: AdapterStore, tmp_path: Path) -> None:
    manifest = publish(store, write_bank(tmp_path / "bank"))
    key = manifest_key(manifest.version)
    content = json.loads(store.get(key).data)
    store.put(key, json.dumps(content).encode())
    assert said(store, lambda: load_manifest(store), DigestMismatch).startswith(
        f"{key!r} in STORE: current.json records"
    )


def test_publish_roll_back_and_follow(store: AdapterStore, tmp_path: Path) -> None:
    first = publish(store, write_bank(tmp_path / "bank"))
    second = publish(store, write_bank(tmp_path / "bank", seed=1))
    with pytest.raises(Conflict):
        publish(store, write_bank(tmp_path / "bank", seed=2), version=first.version)
    prepared: list[str] = []

    async def prepare(bank: BankManifest) -> None:
        prepared.append(bank.version)

    async def follow() -> None:
        follower = BankFollower(store, poll_s=0.02, prepare=prepare)
        following = asyncio.create_task(follower.follow())
        await async_wait_for(lambda: prepared == [second.version], "the current bank")
        await asyncio.to_thread(rollback, store)
        await async_wait_for(lambda: prepared[-1] == first.version, "the bank before")
        following.cancel()

    asyncio.run(follow())
    assert load_manifest(store) == first
    assert verify(store).problems == ()
