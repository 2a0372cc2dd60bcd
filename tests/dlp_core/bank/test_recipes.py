"""Recipes in a bank: read from a folder, published, compared, rolled back, pulled, and refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.difference import diff
from dlp_core.bank.manifest import BankManifest, RecipeEntry, RecipeFit, manifest_key
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.pull import pull
from dlp_core.bank.reading import list_versions, load_manifest
from dlp_core.bank.recipes import entry_of, read_recipes, remove_recipe, write_recipe
from dlp_core.bank.revision import stage_router, with_adapter, with_recipe, without_adapter, without_recipe
from dlp_core.bank.teaching import plan_teaching
from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.mix import Mix
from dlp_core.router import Router
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import ADAPTERS, write_adapter, write_bank, write_router

FITTED = RecipeFit(rows=64, held_back=16, loss=1.5, plain_loss=2.5, best_adapter="beta", best_adapter_loss=1.75)


def recipe(name: str = "blend", weights: dict[str, float] | None = None, **fields: Any) -> RecipeEntry:
    return entry_of(name, weights or {"alpha": 0.25, "beta": -1.5}, {}, **fields)


@pytest.fixture
def store() -> AdapterStore:
    return MemoryStore("bank")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bank with a recipe that its router knows, and one that it does not."""
    folder = write_bank(tmp_path / "bank", router=False)
    write_recipe(folder, recipe(description="Both at once.", fitted=FITTED))
    write_recipe(folder, recipe("spare", {"gamma": 0.5}))
    write_router(folder / "router", [*ADAPTERS, "blend"])
    return folder


def test_a_recipe_is_published_with_its_bank(store: AdapterStore, folder: Path) -> None:
    bank = publish(store, folder)
    blend, spare = bank.recipes
    assert (blend.name, blend.routed, blend.description, blend.fitted) == ("blend", True, "Both at once.", FITTED)
    assert (spare.name, spare.routed) == ("spare", False)
    assert blend.mix == Mix.of({"beta": -1.5, "alpha": 0.25})
    assert blend.mix.recipes == ("blend",)
    assert bank.recipe_mixes == {"blend": blend.mix, "spare": spare.mix}
    assert list(bank.names) == [*ADAPTERS, "blend", "spare"]
    assert list(bank.routed_names) == ["alpha", "beta", "blend", "gamma"]
    assert load_manifest(store) == bank
    assert [version.recipes for version in list_versions(store)] == [2]


def test_a_bank_without_recipes_is_written_as_before_there_were_any(store: AdapterStore, tmp_path: Path) -> None:
    bank = publish(store, write_bank(tmp_path / "bank"))
    document = json.loads(store.get(manifest_key(bank.version)).data)
    assert list(document) == ["format", "version", "created", "base_model", "adapters", "router", "digest"]
    assert "recipes" not in bank.model_dump(mode="json")


def test_a_recipe_makes_another_version_and_so_do_its_weights_and_its_words(
    store: AdapterStore, tmp_path: Path
) -> None:
    folder = write_bank(tmp_path / "bank", router=False)
    banks = [publish(store, folder)]
    for changed in (recipe(), recipe(weights={"alpha": 0.3, "beta": -1.5}), recipe(description="Both at once.")):
        write_recipe(folder, changed, replace=True)
        banks.append(publish(store, folder))
    assert len({bank.version for bank in banks}) == 4
    differences = [diff(a, b) for a, b in pairwise(banks)]
    assert [d.recipes_added for d in differences] == [("blend",), (), ()]
    assert [d.recipes_changed for d in differences] == [(), ("blend",), ("blend",)]
    assert diff(banks[1], banks[0]).recipes_removed == ("blend",)
    assert all(differences)
    assert rollback(store) == banks[2]
    assert rollback(store, banks[0].version).recipes == ()


def test_a_pulled_bank_is_published_as_the_same_version(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    bank = publish(store, folder)
    pull(store, tmp_path / "pulled")
    assert {path.name for path in (tmp_path / "pulled/recipes").iterdir()} == {"blend.json", "spare.json"}
    again = publish(MemoryStore("other"), tmp_path / "pulled")
    assert (again.version, again.recipes) == (bank.version, bank.recipes)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"blend.json: a recipe is .*JSON"),
        ({"adapters": []}, "blend.json: a recipe is .*adapters"),
        ({"adapters": [{"adapter": "alpha", "weight": 17}]}, "adapters.0.weight: .*less than or equal to 16"),
        ('{"adapters": [{"adapter": "alpha", "weight": NaN}]}', "adapters.0.weight: .*finite"),
        ({"adapters": [{"adapter": "alpha", "weight": 0}]}, "weight of 0"),
        ({"adapters": [{"adapter": "alpha", "weight": 1}] * 2}, "names an adapter twice"),
        ({"adapters": [{"adapter": "alpha", "weight": 1}], "layers": 3}, "layers: Extra inputs"),
        (
            {"adapters": [{"adapter": "omega", "weight": 1}]},
            "recipe 'blend' mixes adapter 'omega', which this bank does",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path: Path, content: object, problem: str) -> None:
    folder = write_bank(tmp_path / "bank", router=False)
    (folder / "recipes").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "recipes/blend.json").write_text(text)
    store = MemoryStore("other")
    with pytest.raises(BankError, match=problem):
        publish(store, folder)
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["auto", "gamma"])
def test_a_recipe_is_not_called_as_something_else_is(tmp_path: Path, name: str) -> None:
    folder = write_bank(tmp_path / "bank", router=False)
    (folder / "recipes").mkdir()
    (folder / f"recipes/{name}.json").write_text('{"adapters": [{"adapter": "alpha", "weight": 1}]}')
    with pytest.raises(BankError, match="reserved" if name == "auto" else "'gamma' is an adapter and a recipe"):
        publish(MemoryStore("other"), folder)


def test_a_recipe_is_written_whole_once_and_under_a_free_name(tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    path = write_recipe(folder, recipe())
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match=r"blend\.json exists"):
        write_recipe(folder, recipe(weights={"gamma": 1.0}))
    assert path.read_bytes() == before
    with pytest.raises(InvalidRequest, match="'gamma' is an adapter"):
        write_recipe(folder, recipe("gamma"))
    with pytest.raises(InvalidRequest, match=r"name '\.\./x' is not valid"):
        write_recipe(folder, recipe().model_copy(update={"name": "../x"}))
    assert [found.content for found in read_recipes(folder)] == [recipe().content]
    remove_recipe(folder, "blend")
    assert read_recipes(folder) == []
    with pytest.raises(UnknownModel, match="no recipe 'blend'"):
        remove_recipe(folder, "blend")


def test_a_recipe_of_no_numbers_is_refused() -> None:
    for weight in (float("nan"), float("inf"), 17.0, 0.0):
        with pytest.raises(InvalidRequest, match="recipe 'blend'"):
            recipe(weights={"alpha": weight})


def test_a_recipe_keeps_its_adapters_in_the_bank(store: AdapterStore, folder: Path) -> None:
    before = publish(store, folder)
    with pytest.raises(BankError, match=r"recipe 'blend' of bank .* mixes 'alpha'; fit it again"):
        without_adapter(store, "alpha")
    (folder / "recipes/blend.json").rename(folder / "recipes/held.txt")
    without = write_bank(folder.with_name("smaller"), ["alpha", "beta"], router=False)
    write_recipe(without, recipe("spare", {"gamma": 0.5}))
    with pytest.raises(BankError, match=r"smaller is not a valid bank: .*recipe 'spare' mixes adapter 'gamma'"):
        publish(store, without)
    assert load_manifest(store) == before


def test_recipes_come_to_a_published_bank_and_leave_it(store: AdapterStore, folder: Path) -> None:
    publish(store, folder)
    staged = with_recipe(store, recipe("late", {"gamma": 0.5}), stage=True)
    assert load_manifest(store) != staged
    added = with_recipe(store, recipe("late", {"gamma": 0.5}))
    assert added == staged
    assert [(one.name, one.routed) for one in added.recipes] == [("blend", True), ("late", False), ("spare", False)]
    for taken in ("late", "gamma"):
        with pytest.raises((InvalidRequest, BankError), match=f"'{taken}' is"):
            with_recipe(store, recipe(taken, {"alpha": 1.0}))
    changed = with_recipe(store, recipe("blend", {"gamma": 0.5}), replace=True)
    assert changed.recipes[0].routed
    assert changed.router == added.router
    without = without_recipe(store, "spare")
    assert (without.router, [one.name for one in without.recipes]) == (added.router, ["blend", "late"])
    with pytest.raises(UnknownModel, match="no recipe 'spare'"):
        without_recipe(store, "spare")


def test_the_router_forgets_a_recipe_that_is_removed(store: AdapterStore, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", ["alpha", "gamma"], router=False)
    write_recipe(folder, recipe(weights={"alpha": 1.0, "gamma": 1.0}))
    write_router(folder / "router", ["alpha", "gamma", "blend"])
    publish(store, folder)
    smaller = without_recipe(store, "blend")
    assert smaller.router is not None
    assert smaller.router.labels == ("alpha", "gamma")
    assert smaller.recipes == ()


def test_other_changes_leave_recipes_as_they_are(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    recipes = publish(store, folder).recipes
    new = write_adapter(tmp_path / "delta", seed=9)
    assert with_adapter(store, "delta", new).recipes == recipes
    with pytest.raises(InvalidRequest, match="'blend' is a recipe"):
        with_adapter(store, "blend", new)
    assert without_adapter(store, "delta").recipes == recipes
    write_router(tmp_path / "router", [*ADAPTERS, "blend"], seed=5)
    assert stage_router(store, Router.load(tmp_path / "router"), of=load_manifest(store).version).recipes == recipes
    write_router(tmp_path / "router", ADAPTERS)
    with pytest.raises(BankError, match=r"missing: \['blend'\]"):
        stage_router(store, Router.load(tmp_path / "router"), of=load_manifest(store).version)


def test_an_adapter_that_a_recipe_was_not_fitted_with_is_remarked_on(store: AdapterStore, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", router=False)
    digests = {adapter.name: adapter.digest for adapter in publish(store, folder).adapters}
    write_recipe(folder, entry_of("blend", {"alpha": 1.0, "beta": 1.0}, digests))
    said: list[str] = []

    def note(verdict: Any) -> None:
        said.extend(f"{verdict.name}: {warning}" for warning in verdict.warnings)

    publish(store, folder, report=note)
    assert said == []
    write_adapter(folder / "adapters/beta", seed=77)
    publish(store, folder, report=note)
    with_adapter(store, "alpha", write_adapter(tmp_path / "alpha", seed=78), replace=True, report=note)
    assert [line.partition(";")[0] for line in said] == [
        "beta: recipe 'blend' was fitted with another version of it",
        "alpha: recipe 'blend' was fitted with another version of it",
    ]


def test_rows_may_be_of_a_recipe(folder: Path) -> None:
    rest = plan_teaching(folder, ["alpha", "spare"])
    assert (rest.described, rest.by_name) == ({"blend": "Both at once."}, ("beta", "gamma"))


def test_a_manifest_whose_recipe_mixes_what_is_not_there_is_damaged(store: AdapterStore, folder: Path) -> None:
    document = publish(store, folder).model_dump(mode="json")
    document["adapters"] = document["adapters"][1:]
    with pytest.raises(ValueError, match="recipe 'blend' mixes adapter 'alpha'"):
        BankManifest.model_validate_json(json.dumps(document))
