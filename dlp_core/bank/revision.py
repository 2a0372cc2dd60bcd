"""One adapter more, or fewer, in the bank that serves: a new version, made of the files that are stored already.

A router learns the new adapter from examples (dlp_core/router/growth.py); without any the adapter is used by name only.
Everything goes through dlp_core.bank.publish.commit: the pointer moves last, and only if nobody else moved it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.bank.folder import Check, LocalFile, describe_adapter, describe_router, make_manifest
from dlp_core.bank.manifest import AdapterEntry, BankManifest, RouterEntry
from dlp_core.bank.publish import commit
from dlp_core.bank.reading import load_manifest
from dlp_core.errors import BankError, InvalidRequest, LocalDiskError, UnknownModel
from dlp_core.router import Router
from dlp_core.router.growth import add_adapter, remove_adapter
from dlp_core.store.disk import disk_errors
from dlp_core.store.protocol import AdapterStore


def with_adapter(
    store: AdapterStore,
    name: str,
    folder: Path,
    *,
    examples: Sequence[str] | None = None,
    replace: bool = False,
    check: Check | None = None,
) -> BankManifest:
    """Publishes the bank that serves with the adapter in `folder` (PEFT files) as `name`.

    `examples` are prompts the router shall send to it. `replace` allows a name the bank has; it stays routed if it was.
    Raises InvalidRequest if the name is taken or the examples are too few, AdapterRefused if the adapter cannot be
    served, UnknownModel for examples where the bank has no router, and what dlp_core.bank.publish.publish raises.
    """

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        others = {adapter.name: adapter for adapter in before.adapters}
        known = others.pop(name, None)
        if known is not None and not replace:
            raise InvalidRequest(
                f"adapter {name!r} is in bank {before.version} already; unload it first, or replace it"
            )
        was_routed = known is not None and known.routed
        entry, sources = describe_adapter(
            folder, name=name, base_id=before.base_model.id, check=check, routed=was_routed or examples is not None
        )
        adapters = sorted([*others.values(), entry], key=lambda adapter: adapter.name)
        router = before.router
        if examples is not None:
            grown = _read_router(store, before, work)
            if was_routed:
                grown = remove_adapter(grown, name)
            router, files = _save_router(add_adapter(grown, name, examples)[0], work, adapters)
            sources += files
        return make_manifest(
            before.base_model, adapters, router, version=None, where=f"the bank with {name!r}"
        ), sources

    return _revise(store, make)


def without_adapter(store: AdapterStore, name: str) -> BankManifest:
    """Publishes the bank that serves without one adapter; its router forgets it. Raises UnknownModel if the bank does
    not have it, BankError if it has no other, and what dlp_core.bank.publish.publish raises."""

    def make(before: BankManifest, work: Path) -> tuple[BankManifest, list[LocalFile]]:
        adapters = [adapter for adapter in before.adapters if adapter.name != name]
        if len(adapters) == len(before.adapters):
            raise UnknownModel(f"adapter {name!r} does not exist in bank {before.version}", param="lora_name")
        if not adapters:
            raise BankError(f"{name!r} is the only adapter of bank {before.version}; publish another bank instead")
        router = before.router
        sources: list[LocalFile] = []
        if router is not None and name in router.labels:
            if len(router.labels) == 1:
                router = None
            else:
                router, sources = _save_router(remove_adapter(_read_router(store, before, work), name), work, adapters)
        return make_manifest(
            before.base_model, adapters, router, version=None, where=f"the bank without {name!r}"
        ), sources

    return _revise(store, make)


def _revise(
    store: AdapterStore, make: Callable[[BankManifest, Path], tuple[BankManifest, list[LocalFile]]]
) -> BankManifest:
    with TemporaryDirectory(prefix="dlp-revise-") as work:

        def of_serving(version: str | None) -> tuple[BankManifest, list[LocalFile]]:
            return make(load_manifest(store, version), Path(work))

        return commit(store, of_serving)


def _read_router(store: AdapterStore, bank: BankManifest, work: Path) -> Router:
    if bank.router is None:
        raise UnknownModel(f"bank {bank.version} has no router that could learn or forget an adapter")
    folder = work / "before"
    with disk_errors(f"{folder}: the router cannot be copied", mistake=LocalDiskError):
        folder.mkdir(exist_ok=True)
        for file in bank.router.files:
            store.download(bank.router.key(file.path), folder / file.path, size=file.size, sha256=file.sha256)
    return Router.load(folder)


def _save_router(router: Router, work: Path, adapters: Sequence[AdapterEntry]) -> tuple[RouterEntry, list[LocalFile]]:
    router.save(work / "router")
    return describe_router(work / "router", [adapter.name for adapter in adapters if adapter.routed])
