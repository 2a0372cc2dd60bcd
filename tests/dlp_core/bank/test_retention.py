"""Which banks stay: pins, the newest few, and what the current and the previous one need."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dlp_core.bank import pointer
from dlp_core.bank.manifest import manifest_key
from dlp_core.bank.publish import publish, rollback, verify
from dlp_core.bank.reading import current, list_versions, load_manifest
from dlp_core.bank.retention import collect, pin, unpin
from dlp_core.errors import BankError, Conflict, NotFound, UnknownModel
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import ADAPTERS, Spy, write_bank
from tests.support.stores import KINDS, empty_place

VERSIONS = ("v1", "v2", "v3", "v4", "v5")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    return open_store(empty_place(request.param, request, tmp_path))


@pytest.fixture
def memory() -> AdapterStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def fill(store: AdapterStore, folder: Path, versions: tuple[str, ...] = VERSIONS) -> None:
    """Each version has adapters of its own, and one that all share."""
    for seed, version in enumerate(versions):
        bank = write_bank(folder / version, ADAPTERS[:2], seed=seed + 1, router=False)
        write_bank(bank, ADAPTERS[2:], seed=99, router=False)
        publish(store, bank, version=version)


def versions(store: AdapterStore) -> set[str]:
    return {bank.version for bank in list_versions(store)}


def test_the_current_the_previous_and_the_pinned_stay_whole(store: AdapterStore, tmp_path: Path) -> None:
    fill(store, tmp_path)
    pin(store, "v2")
    garbage = collect(store, keep=0)
    assert set(garbage.kept) == versions(store) == {"v2", "v4", "v5"}
    assert set(garbage.versions) == {"v1", "v3"}
    for version in versions(store):
        assert not verify(store, version).problems
    assert not any("alpha" in info.key for info in store.list("adapters/") if info.key in garbage.keys)
    assert len(store.list("adapters/alpha/")) == 2 * 3
    assert len(store.list("adapters/gamma/")) == 2
    assert current(store)[0].collecting is None
    assert rollback(store).version == "v4"


def test_the_newest_few_stay_too(memory: AdapterStore, tmp_path: Path) -> None:
    fill(memory, tmp_path)
    for age, version in enumerate(VERSIONS):  # published within a second: give them days
        manifest = load_manifest(memory, version).model_copy(update={"created": datetime(2026, 1, 1 + age, tzinfo=UTC)})
        memory.put(manifest_key(version), manifest.model_dump_json().encode())
    assert set(collect(memory, keep=1, dry_run=True).versions) == {"v1", "v2"}
    assert versions(memory) == set(VERSIONS)
    assert set(collect(memory, keep=1).kept) == {"v3", "v4", "v5"}


def test_a_pin_outlives_publishes_and_can_be_taken_back(memory: AdapterStore, tmp_path: Path) -> None:
    fill(memory, tmp_path, VERSIONS[:2])
    pin(memory, "v1")
    pin(memory, "v1")
    fill(memory, tmp_path / "more", VERSIONS[2:])
    assert current(memory)[0].pinned == ("v1",)
    assert [bank.version for bank in list_versions(memory) if bank.pinned] == ["v1"]
    unpin(memory, "v1")
    assert "v1" in collect(memory, keep=0).versions
    with pytest.raises(UnknownModel, match="'v1' is not pinned"):
        unpin(memory, "v1")
    with pytest.raises(UnknownModel, match="no bank version 'v1'"):
        pin(memory, "v1")


def test_files_of_no_bank_go(memory: AdapterStore, tmp_path: Path) -> None:
    fill(memory, tmp_path, VERSIONS[:1])
    memory.put("adapters/lost/1234/adapter_config.json", b"{}")
    memory.put("routers/lost/router.json", b"{}")
    memory.put("evals/kept/report.json", b"{}")
    garbage = collect(memory)
    assert set(garbage.keys) == {"adapters/lost/1234/adapter_config.json", "routers/lost/router.json"}
    assert garbage.size == 4
    assert memory.get("evals/kept/report.json").data == b"{}"


def test_nobody_publishes_while_garbage_is_collected(memory: AdapterStore, tmp_path: Path) -> None:
    fill(memory, tmp_path)
    told: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        for change in (
            lambda: publish(memory, write_bank(tmp_path / "new", seed=50)),
            lambda: rollback(memory),
            lambda: pin(memory, "v5"),
            lambda: collect(memory),
        ):
            with pytest.raises(Conflict, match="garbage is being collected") as refused:
                change()
            told.append(refused.value.message)

    collect(memory, keep=0, progress=meanwhile)
    assert told
    publish(memory, write_bank(tmp_path / "new", seed=50))
    assert not verify(memory).problems


def test_a_publisher_that_was_overtaken_by_a_collection_starts_again(memory: AdapterStore, tmp_path: Path) -> None:
    """It found files in place that were deleted before it moved the pointer."""
    fill(memory, tmp_path)
    again = tmp_path / "v1"
    collected = False

    def meanwhile(done: int, total: int) -> None:
        nonlocal collected
        if done == total and not collected:
            collected = True
            assert "v1" in collect(memory, keep=0).versions

    publish(memory, again, version="v1", progress=meanwhile)
    assert collected
    assert current(memory)[0].version == "v1"
    assert not verify(memory).problems


def test_a_collector_that_died_stops_nobody_for_long(
    memory: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, tmp_path, VERSIONS[:2])
    now, etag = current(memory)
    died = datetime.now(UTC)
    pointer.replace(memory, (now, etag), now.model_copy(update={"collecting": died}))
    with pytest.raises(Conflict, match=r"in 1[12]\d s"):
        rollback(memory)
    now, etag = current(memory)
    pointer.replace(memory, (now, etag), now.model_copy(update={"collecting": died - pointer.CLAIM}))
    assert rollback(memory).version == "v1"
    assert current(memory)[0].collecting is None


def test_a_claim_that_is_lost_stops_the_deleting(
    memory: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, tmp_path)
    monkeypatch.setattr(pointer, "CLAIM", timedelta(0))
    monkeypatch.setattr("dlp_core.bank.retention.CLAIM", timedelta(0))
    overtaken = False

    def meanwhile(done: int, total: int) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            pin(memory, "v5")

    with pytest.raises(Conflict, match="changed by another writer"):
        collect(memory, keep=0, progress=meanwhile)
    assert current(memory)[0].pinned == ("v5",)


def test_what_must_be_kept_and_cannot_be_read_stops_it_before_anything_is_deleted(
    memory: AdapterStore, tmp_path: Path
) -> None:
    fill(memory, tmp_path)
    memory.put(manifest_key("v4"), b"{")
    spy = Spy(memory)
    with pytest.raises(BankError, match="nothing was deleted"):
        collect(spy, keep=0)
    assert not [call for call in spy.calls if call[0] == "delete"]
    assert current(memory)[0].collecting is None
    memory.delete(manifest_key("v4"))
    memory.delete(manifest_key("v5"))
    with pytest.raises(NotFound, match="current bank v5"):
        collect(memory)


def test_a_damaged_manifest_nobody_needs_is_garbage(memory: AdapterStore, tmp_path: Path) -> None:
    fill(memory, tmp_path)
    memory.put(manifest_key("v1"), b"{")
    assert "v1" in collect(memory).versions


def test_there_must_be_a_bank(memory: AdapterStore) -> None:
    with pytest.raises(NotFound, match="no bank is published"):
        collect(memory)


def test_empty_folders_go_with_their_last_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    fill(store, tmp_path, VERSIONS[:3])
    collect(store, keep=0)
    assert not [
        path for path in (tmp_path / "store" / "adapters").rglob("*") if path.is_dir() and not any(path.iterdir())
    ]
