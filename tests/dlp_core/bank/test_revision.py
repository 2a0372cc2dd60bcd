"""One adapter more or fewer in the bank that serves, by files that are stored already."""

from __future__ import annotations

import uuid
from pathlib import Path
from random import Random

import pytest

from dlp_core.adapter.examination import Verdict
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish, rollback, verify
from dlp_core.bank.reading import current, load_manifest
from dlp_core.bank.revision import with_adapter, without_adapter
from dlp_core.errors import AdapterRefused, BankError, InvalidRequest, NotFound, UnknownModel
from dlp_core.router import Router
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.dlp_core.router.test_growth import NEW, examples, smaller
from tests.support.banks import write_adapter, write_bank
from tests.support.router_rows import TASKS, trained


@pytest.fixture
def store() -> AdapterStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def bank(store: AdapterStore, tmp_path: Path) -> BankManifest:
    """Three adapters and a router that was trained for them."""
    folder = write_bank(tmp_path / "bank", sorted(set(TASKS) - {NEW}), router=False)
    smaller().save(folder / "router")
    return publish(store, folder)


def names(bank: BankManifest) -> list[str]:
    return [adapter.name for adapter in bank.adapters]


def labels(bank: BankManifest) -> list[str]:
    assert bank.router is not None
    return sorted(bank.router.labels)


def router_of(store: AdapterStore, bank: BankManifest, folder: Path) -> Router:
    assert bank.router is not None
    folder.mkdir()
    for file in bank.router.files:
        store.download(bank.router.key(file.path), folder / file.path, size=file.size, sha256=file.sha256)
    return Router.load(folder)


@pytest.mark.slow
def test_without_examples_it_is_used_by_name_only(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    after = with_adapter(store, NEW, write_adapter(tmp_path / "any-name", seed=5))
    assert load_manifest(store) == after
    assert names(after) == sorted(TASKS)
    assert after.router == bank.router
    assert [adapter.name for adapter in after.adapters if not adapter.routed] == [NEW]
    assert current(store)[0].previous == bank.version
    assert not verify(store).problems


def test_with_examples_the_router_learns_it(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    after = with_adapter(store, NEW, write_adapter(tmp_path / "new", seed=5), examples=examples())
    assert labels(after) == names(after) == sorted(TASKS)
    assert router_of(store, after, tmp_path / "router").route(examples(3))[0].mix().names[0] == NEW
    assert not verify(store).problems


def test_taking_it_out_again_gives_the_bank_back(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    with_adapter(store, NEW, write_adapter(tmp_path / "new", seed=5))
    assert without_adapter(store, NEW).version == bank.version


def test_a_routed_adapter_leaves_the_router_too(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    after = without_adapter(store, "word_sorting")
    assert labels(after) == names(after) == ["flight_json", "sum_numbers"]
    text = [TASKS["word_sorting"](Random(1))]
    assert not router_of(store, after, tmp_path / "router").route(text)[0].fits
    assert rollback(store) == bank


@pytest.mark.slow
def test_the_last_routed_adapter_takes_the_router_with_it(store: AdapterStore, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", ["sum_numbers"], router=False)
    trained()[0].only(["sum_numbers"]).save(folder / "router")
    publish(store, folder)
    with_adapter(store, NEW, write_adapter(tmp_path / "new"))
    after = without_adapter(store, "sum_numbers")
    assert (names(after), after.router) == ([NEW], None)
    with pytest.raises(BankError, match="only adapter"):
        without_adapter(store, NEW)


def test_a_name_that_is_taken_must_be_replaced_on_purpose(
    store: AdapterStore, bank: BankManifest, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "other", seed=77)
    with pytest.raises(InvalidRequest, match=r"already in bank \w+"):
        with_adapter(store, "word_sorting", folder)
    after = with_adapter(store, "word_sorting", folder, replace=True)
    assert labels(after) == names(after) == names(bank)
    assert after.router == bank.router
    assert after.version != bank.version


def test_with_a_description_the_router_learns_it_and_the_bank_keeps_it(
    store: AdapterStore, bank: BankManifest, tmp_path: Path
) -> None:
    about = "Read a story about things that change hands, and say who has the object."
    after = with_adapter(store, NEW, write_adapter(tmp_path / "new", seed=5), description=f" {about}\n")
    assert labels(after) == names(after) == sorted(TASKS)
    assert {adapter.name: adapter.description for adapter in after.adapters}[NEW] == about
    folder = write_adapter(tmp_path / "again", seed=6)
    (folder / "description.txt").write_text("Another sentence.\n")
    again = with_adapter(store, NEW, folder, replace=True)
    assert {adapter.name: adapter.description for adapter in again.adapters}[NEW] == "Another sentence."
    assert again.version != after.version
    (folder / "description.txt").write_text("two\nlines")
    with pytest.raises(AdapterRefused, match=r"description\.txt: it must be one line of text"):
        with_adapter(store, NEW, folder, replace=True)
    with pytest.raises(InvalidRequest, match="one line of text, at most 500"):
        with_adapter(store, "other", write_adapter(tmp_path / "other"), description="x" * 501)
    assert load_manifest(store) == again


def test_what_cannot_be_done_changes_nothing(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "new")
    with pytest.raises(AdapterRefused, match="use_dora"):
        with_adapter(store, NEW, write_adapter(tmp_path / "dora", use_dora=True))
    with pytest.raises(InvalidRequest, match="nothing to know 'object_owner' by"):
        with_adapter(store, NEW, folder, examples=[" "])
    with pytest.raises(BankError, match="auto"):
        with_adapter(store, "auto", folder)
    with pytest.raises(UnknownModel, match="'nobody' does not exist"):
        without_adapter(store, "nobody")
    assert load_manifest(store) == bank


def test_the_verdict_on_a_new_adapter_is_reported(store: AdapterStore, bank: BankManifest, tmp_path: Path) -> None:
    verdicts: list[Verdict] = []
    folder = write_adapter(tmp_path / "new", base_model_name_or_path="org/other-7b")
    with_adapter(store, NEW, folder, report=verdicts.append)
    assert [(verdict.name, len(verdict.warnings)) for verdict in verdicts] == [(NEW, 1)]
    assert "'org/other-7b'" in verdicts[0].warnings[0]


def test_there_must_be_a_bank(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no bank is published"):
        with_adapter(store, NEW, write_adapter(tmp_path / "new"))


def test_a_router_is_needed_to_learn(store: AdapterStore, tmp_path: Path) -> None:
    publish(store, write_bank(tmp_path / "bank", router=False))
    with pytest.raises(UnknownModel, match="no router"):
        with_adapter(store, NEW, write_adapter(tmp_path / "new"), examples=examples())


def test_what_its_router_does_not_know_serves_by_name_with_a_warning_or_as_its_folder_says(
    store: AdapterStore, tmp_path: Path
) -> None:
    folder = write_bank(tmp_path / "bank", router=False)
    smaller().only(["word_sorting"]).save(folder / "router")
    (folder / "adapters" / "alpha").rename(folder / "adapters" / "word_sorting")
    (folder / "bank.json").write_text('{"base_model": "org/tiny-base", "unrouted": ["beta"]}')
    warned: list[str] = []
    bank = publish(store, folder, report=lambda verdict: warned.extend([verdict.name] * len(verdict.warnings)))
    assert [adapter.routed for adapter in bank.adapters] == [False, False, True]
    assert warned == ["gamma"]
    (folder / "bank.json").write_text('{"base_model": "org/tiny-base", "unrouted": ["delta"]}')
    with pytest.raises(BankError, match="'delta', which is not an adapter or recipe"):
        publish(store, folder)
