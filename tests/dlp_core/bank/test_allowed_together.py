"""The pairs that run together: read with a bank folder, published, compared, rolled back, pulled, and refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.difference import diff
from dlp_core.bank.folder import read_folder, read_together, write_pairs
from dlp_core.bank.manifest import MAX_PAIRS, manifest_key
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.pull import pull
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.recipes import entry_of, write_recipe
from dlp_core.bank.revision import with_adapter, with_recipe, without_adapter
from dlp_core.errors import BankError, UnknownModel
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import BASE_ID, write_adapter, write_bank

AB, BC = ("alpha", "beta"), ("beta", "gamma")


@pytest.fixture
def store() -> AdapterStore:
    return MemoryStore("bank")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return allow(write_bank(tmp_path / "bank", router=False), [["gamma", "beta"], ["alpha", "beta"]])


def allow(folder: Path, pairs: Any) -> Path:
    settings = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps(settings | {"allowed_together": pairs}))
    return folder


def test_the_pairs_are_published_in_order_and_pulled_again(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    bank = publish(store, folder)
    assert bank.allowed_together == (AB, BC)
    assert load_manifest(store) == bank
    assert bank.together.conflict(["gamma", "alpha"]) == ("alpha", "gamma")
    assert read_together(folder).allows(*BC)
    pull(store, tmp_path / "pulled")
    assert read_folder(tmp_path / "pulled")[0].version == bank.version


@pytest.mark.parametrize("pairs", [None, []])
def test_no_list_and_an_empty_one_are_different_banks(store: AdapterStore, tmp_path: Path, pairs: Any) -> None:
    folder = write_bank(tmp_path / "bank")
    plain = publish(store, folder)
    assert "allowed_together" not in json.loads(store.get(manifest_key(plain.version)).data)
    bank = publish(store, allow(folder, pairs))
    assert (bank.version == plain.version) == (pairs is None)
    assert bank.together.allows(*AB) == (pairs is None)
    pull(store, tmp_path / "pulled")
    assert read_folder(tmp_path / "pulled")[0].version == bank.version


def test_a_change_of_the_pairs_is_a_version_that_diff_shows_and_rollback_undoes(
    store: AdapterStore, tmp_path: Path
) -> None:
    folder = write_bank(tmp_path / "bank")
    banks = [publish(store, folder)]
    changes: list[Any] = []
    for pairs in ([AB], [AB, BC], [BC], None):
        banks.append(publish(store, allow(folder, pairs), confirm=changes.append))
    found = [(one.mixes, one.pairs_added, one.pairs_removed) for one in changes]
    assert found == [("listed", (AB,), ()), (None, (BC,), ()), (None, (), (AB,)), ("any", (), (BC,))]
    assert [diff(a, b) for a, b in pairwise(banks)] == changes
    assert len({bank.version for bank in banks}) == 4
    assert rollback(store, banks[2].version).allowed_together == (AB, BC)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([["alpha", "delta"]], "the pair 'alpha', 'delta', and 'delta' is not an adapter of this bank"),
        ([["beta", "beta"]], "pairs 'beta' with itself"),
        ([["alpha", "beta"], ["beta", "alpha"]], "the pair 'alpha', 'beta' twice"),
        ([["alpha", "beta", "gamma"]], "allowed_together.0"),
        (["alpha"], "allowed_together.0"),
        ([["alpha", "a b"]], "allowed_together.0.1"),
        ({"alpha": "beta"}, "allowed_together"),
        ([["alpha", f"x{number}"] for number in range(MAX_PAIRS + 1)], "at most 20000 items"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_names_bank_and_pair(
    store: AdapterStore, tmp_path: Path, pairs: Any, says: str
) -> None:
    folder = allow(write_bank(tmp_path / "bank"), pairs)
    with pytest.raises(BankError) as refused:
        publish(store, folder)
    assert str(folder) in refused.value.message
    assert says in refused.value.message
    assert "\n" not in refused.value.message


def test_a_manifest_whose_pairs_are_not_in_order_is_damaged(store: AdapterStore, folder: Path) -> None:
    bank = publish(store, folder)
    document = json.loads(store.get(manifest_key(bank.version)).data)
    document["allowed_together"].reverse()
    store.put(manifest_key(bank.version), json.dumps(document).encode())
    with pytest.raises(BankError, match="must have its pairs in order"):
        load_manifest(store, bank.version)


def test_an_adapter_that_goes_takes_its_pairs_along_and_one_that_comes_has_none(
    store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    publish(store, folder)
    assert without_adapter(store, "gamma").allowed_together == (AB,)
    again = with_adapter(store, "gamma", write_adapter(tmp_path / "gamma", seed=9))
    assert again.allowed_together == (AB,)
    assert not again.together.allows(*BC)
    assert without_adapter(store, "alpha").allowed_together == (), "nothing is mixed, rather than anything"
    with pytest.raises(UnknownModel):
        without_adapter(store, "alpha")


def test_another_adapter_in_the_place_of_a_paired_one_gives_a_warning(
    store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    publish(store, folder)
    said: list[str] = []

    def replaced(name: str, path: Path) -> None:
        said.clear()
        with_adapter(store, name, path, replace=True, report=lambda verdict: said.extend(verdict.warnings))

    replaced("beta", write_adapter(tmp_path / "beta", seed=9))
    assert said == ["allowed_together lets it run with alpha, gamma, by another version; `dlp eval pairs` judges it"]
    replaced("beta", tmp_path / "beta")
    assert said == []


def test_a_recipe_of_a_pair_that_is_not_allowed_is_refused_by_name(store: AdapterStore, folder: Path) -> None:
    publish(store, folder)
    says = "recipe 'blend' mixes 'alpha' and 'gamma', which allowed_together does not have"
    recipe = entry_of("blend", {"gamma": 0.5, "alpha": 0.25}, {})
    with pytest.raises(BankError, match=says):
        with_recipe(store, recipe)
    write_recipe(folder, recipe)
    with pytest.raises(BankError, match=says):
        publish(store, folder)
    write_recipe(folder, entry_of("blend", {"alpha": 0.5, "beta": 0.25}, {}), replace=True)
    assert publish(store, folder).allowed_together == (AB, BC)


def test_pairs_are_written_into_a_folder(folder: Path) -> None:
    assert write_pairs(folder, [("gamma", "alpha")]) == folder / "bank.json"
    assert json.loads((folder / "bank.json").read_text()) == {
        "base_model": BASE_ID,
        "allowed_together": [["alpha", "gamma"]],
    }
    assert [path.name for path in folder.glob(".*")] == []
    with pytest.raises(BankError):
        write_pairs(folder / "adapters", [])
