"""Adds an adapter or a recipe to the current bank, removes one, or gives it another router, as a new version that
reuses the stored files.

A router learns the new adapter from examples, a description, or both (dlp_core/router/growth.py); without any it is
used by name only. All changes go through dlp_core.bank.publish.commit: the pointer moves last, and only if it has not
changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dlp_core.adapter.examination import LENIENT, Check, Verdict, read_by
from dlp_core.bank.folder import (
    LocalFile,
    Report,
    checked_description,
    describe_adapter,
    describe_router,
    make_manifest,
    read_description,
    unreported,
)
from dlp_core.bank.manifest import AdapterEntry, BankManifest, RecipeEntry, RouterEntry, routed_names
from dlp_core.bank.publish import commit
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.recipes import refitted
from dlp_core.errors import BankError, InvalidRequest, LocalDiskError, UnknownModel
from dlp_core.router import Router
from dlp_core.router.files import ENCODER_FOLDER
from dlp_core.router.growth import add_adapter, remove_adapter
from dlp_core.store.disk import disk_errors
from dlp_core.store.protocol import AdapterStore
from dlp_core.together import Pair


def with_adapter(
    store: AdapterStore,
    name: str,
    folder: Path,
    *,
    examples: Sequence[str] | None = None,
    description: str | None = None,
    replace: bool = False,
    check: Check | None = None,
    report: Report = unreported,
) -> BankManifest:
    """Publish the current bank plus the adapter in `folder` (PEFT files) as `name`.

    `report` is called with the verdict on the adapter. `examples` are prompts for the router to send to it,
    `description` says what it is for; the default is what the folder says. `replace` allows an existing name; it stays
    routed if it was. Raises InvalidRequest if the name is taken or the description is no sentence, AdapterRefused if
    the adapter cannot be served, UnknownModel for examples or a `description` if the bank has no router,
    and what dlp_core.bank.publish.publish raises."""

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        others = {adapter.name: adapter for adapter in before.adapters}
        existing = others.pop(name, None)
        if existing is not None and not replace:
            raise InvalidRequest(
                f"adapter {name!r} is already in bank {before.version}; unload it first, or replace it"
            )
        if name in before.recipe_mixes:
            raise InvalidRequest(f"{name!r} is a recipe of bank {before.version}; give the adapter another name")
        was_routed = existing is not None and existing.routed
        about = read_description(folder) if description is None else checked_description(description)
        taught = examples is not None or description is not None or (about is not None and before.router is not None)
        verdicts: list[Verdict] = []
        entry, sources = describe_adapter(
            read_by(LENIENT, folder, name=name),
            folder,
            base=before.base_model,
            check=check,
            report=verdicts.append,
            routed=was_routed or taught,
            description=about,
        )
        for verdict in verdicts:
            report(verdict.warned(*refitted(before.recipes, entry), *_judged_before(before, existing, entry)))
        adapters = sorted([*others.values(), entry], key=lambda adapter: adapter.name)
        router = before.router
        if taught:
            grown = _read_router(store, before, work)
            if was_routed:
                grown = remove_adapter(grown, name)
            grown = add_adapter(grown, name, examples or [], description=about)[0]
            router, files = _save_router(grown, work, routed_names(adapters, before.recipes))
            sources += files
        return _remade(before, f"the bank with {name!r}", adapters=adapters, router=router), sources

    return _revise(store, make)


def without_adapter(store: AdapterStore, name: str) -> BankManifest:
    """Publish the current bank without one adapter and the pairs that it may run in, and remove it from the router.

    Raises UnknownModel if the bank does not have it, BankError if it is the only one or a recipe mixes it, and what
    dlp_core.bank.publish.publish raises."""

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        adapters = [adapter for adapter in before.adapters if adapter.name != name]
        if len(adapters) == len(before.adapters):
            raise UnknownModel(f"adapter {name!r} does not exist in bank {before.version}", param="lora_name")
        if users := [recipe.name for recipe in before.recipes if name in recipe.mix.names]:
            raise BankError(
                f"recipe {users[0]!r} of bank {before.version} mixes {name!r}; fit it again without that adapter, or "
                "remove it with `dlp mix remove`, first"
            )
        if not adapters:
            raise BankError(f"{name!r} is the only adapter of bank {before.version}; publish another bank instead")
        router, sources = _router_without(store, before, name, work)
        pairs = None if before.allowed_together is None else [p for p in before.allowed_together if name not in p]
        where = f"the bank without {name!r}"
        return _remade(before, where, adapters=adapters, router=router, allowed_together=pairs), sources

    return _revise(store, make)


def with_recipe(
    store: AdapterStore, recipe: RecipeEntry, *, replace: bool = False, stage: bool = False
) -> BankManifest:
    """Publish the current bank plus a recipe, or only `stage` it. `replace` allows an existing name, which the router
    knows if it did before; a new one serves by name alone.

    Raises InvalidRequest if the name is taken, BankError if the recipe mixes an adapter that the bank does not have,
    and what dlp_core.bank.publish.publish raises."""

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        others = {other.name: other for other in before.recipes}
        existing = others.pop(recipe.name, None)
        if existing is not None and not replace:
            raise InvalidRequest(f"recipe {recipe.name!r} is already in bank {before.version}; remove or replace it")
        routed = existing is not None and existing.routed
        entry = recipe.model_copy(update={"routed": routed})
        recipes = sorted([*others.values(), entry], key=lambda one: one.name)
        return _remade(before, f"the bank with recipe {recipe.name!r}", recipes=recipes), []

    return _revise(store, make, stage=stage)


def without_recipe(store: AdapterStore, name: str) -> BankManifest:
    """Publish the current bank without a recipe, and remove it from the router. Raises UnknownModel if the bank does
    not have it, and what dlp_core.bank.publish.publish raises."""

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        recipes = [recipe for recipe in before.recipes if recipe.name != name]
        if len(recipes) == len(before.recipes):
            raise UnknownModel(f"there is no recipe {name!r} in bank {before.version}")
        router, sources = _router_without(store, before, name, work)
        return _remade(before, f"the bank without recipe {name!r}", recipes=recipes, router=router), sources

    return _revise(store, make)


def stage_router(store: AdapterStore, router: Router, *, of: str) -> BankManifest:
    """Store the bank `of` with this router in the place of its own, which no server uses yet: a canary to be.

    Raises BankError if the router does not know exactly the routed adapters, UnknownModel if there is no such version,
    and what dlp_core.bank.publish.publish raises."""

    def make(current: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        before = current if current.version == of else load_manifest(store, of)
        entry, files = _save_router(router, work, before.routed_names)
        return _remade(before, "the bank with its new router", router=entry), files

    return _revise(store, make, stage=True)


def _judged_before(before: BankManifest, existing: AdapterEntry | None, adapter: AdapterEntry) -> tuple[str, ...]:
    """A warning where an adapter takes the place of another that may be mixed."""
    partners = [
        other
        for pair in before.allowed_together or ()
        if existing is not None and existing.digest != adapter.digest and adapter.name in pair
        for other in pair
        if other != adapter.name
    ]
    if not partners:
        return ()
    return (f"allowed_together lets it run with {', '.join(partners)}, by another version; `dlp eval pairs` judges it",)


def _remade(
    before: BankManifest,
    where: str,
    *,
    adapters: Sequence[AdapterEntry] | None = None,
    recipes: Sequence[RecipeEntry] | None = None,
    router: RouterEntry | Literal["same"] | None = "same",
    allowed_together: Sequence[Pair] | None = None,
) -> BankManifest:
    """The manifest with other adapters, recipes, router or pairs. Raises BankError, naming `where`, if invalid."""
    return make_manifest(
        before.base_model,
        before.adapters if adapters is None else adapters,
        before.router if router == "same" else router,
        before.recipes if recipes is None else recipes,
        before.allowed_together if allowed_together is None else allowed_together,
        version=None,
        where=where,
    )


def _router_without(
    store: AdapterStore, before: BankManifest, name: str, work: Path
) -> tuple[RouterEntry | None, list[LocalFile]]:
    """The router of a bank without one of what it chooses from, None if nothing is left; its files, if it is new."""
    if before.router is None or name not in before.router.labels:
        return before.router, []
    if len(before.router.labels) == 1:
        return None, []
    smaller = remove_adapter(_read_router(store, before, work), name)
    return _save_router(smaller, work, [label for label in before.routed_names if label != name])


def _revise(
    store: AdapterStore,
    make: Callable[[BankManifest, Path], tuple[BankManifest, list[LocalFile]]],
    *,
    stage: bool = False,
) -> BankManifest:
    with TemporaryDirectory(prefix="dlp-revise-") as work:

        def make_from_version(version: str | None) -> tuple[BankManifest, list[LocalFile]]:
            return make(load_manifest(store, version), Path(work))

        return commit(store, make_from_version, stage=stage)


def download_router(store: AdapterStore, version: str | None = None) -> Router:
    """The router of a bank, by default of the current one. Raises UnknownModel if there is no such version or it has no
    router, BankError, StoreUnavailable."""
    with TemporaryDirectory(prefix="dlp-router-") as work:
        return _read_router(store, load_manifest(store, version), Path(work))


def _read_router(store: AdapterStore, bank: BankManifest, work: Path) -> Router:
    if bank.router is None:
        raise UnknownModel(f"bank {bank.version} has no router; `dlp router train --into FOLDER`, then publish that")
    folder = work / "before"
    with disk_errors(f"{folder}: the router cannot be copied", mistake=LocalDiskError):
        for blob, into in ((bank.router, folder), (bank.router.encoder, folder / ENCODER_FOLDER)):
            if blob is not None:
                into.mkdir(parents=True, exist_ok=True)
                for file in blob.files:
                    store.download(blob.key(file.path), into / file.path, size=file.size, sha256=file.sha256)
    return Router.load(folder)


def _save_router(router: Router, work: Path, names: Sequence[str]) -> tuple[RouterEntry, list[LocalFile]]:
    """`names` are what it must choose from."""
    router.save(work / "router")
    return describe_router(work / "router", router, names)
