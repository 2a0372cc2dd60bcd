"""Provides the engine with a bank's adapters: looked up in manifests, fetched through the disk cache.

The engine names an adapter `name@version`. Versions derive from the content, so several banks can be served side by
side: a request that started under one bank keeps its adapters while the next bank is already in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dlp_core.adapter.invocation import Invocation
from dlp_core.adapter.names import unqualify
from dlp_core.adapter.prompting import PROMPT_FILE, read_prompting
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import AdapterEntry, BankManifest
from dlp_core.errors import BankError, UnknownModel
from dlp_core.mix import Mix
from dlp_core.router import Router
from dlp_core.store.protocol import AdapterStore


class BankSource:
    """An AdapterSource over a store. `add` a manifest before requesting its adapters."""

    def __init__(self, store: AdapterStore, cache: DiskCache) -> None:
        self._store = store
        self._cache = cache
        self._entries: dict[str, AdapterEntry] = {}
        self._templates: dict[str, str | None] = {}

    def add(self, manifest: BankManifest) -> None:
        """Register the adapters of a bank version. Idempotent."""
        self._entries.update({entry.qualified_name: entry for entry in manifest.adapters})

    def digest(self, name: str) -> str:
        return self._entry(name).digest

    def size(self, name: str) -> int:
        return self._entry(name).size

    def invocation(self, name: str) -> Invocation | None:
        return self._entry(name).invocation

    def load(self, name: str) -> Adapter:
        """Read one adapter, from disk if it was fetched before.

        Raises AdapterUnavailable if it cannot be fetched now, AdapterMissing if it is not in the store, AdapterRefused
        if it cannot be served.
        """
        entry = self._entry(name)
        with self._cache.lease(self._store, entry) as folder:
            return read_adapter(folder, name=entry.name)

    def chat_template(self, name: str) -> str | None:
        """The chat template that an adapter brings; None if it brings none. Blocking. Raises what `load` raises."""
        entry = self._entry(name)
        if all(file.path != PROMPT_FILE for file in entry.files):
            return None
        if name not in self._templates:
            with self._cache.lease(self._store, entry) as folder:
                prompting, _ = read_prompting(folder, entry.name)
            self._templates[name] = None if prompting is None else prompting.chat_template
        return self._templates[name]

    def on_disk(self) -> int:
        """The number of known adapters in the disk cache. Blocking."""
        return len(self._cache.digests() & {entry.digest for entry in list(self._entries.values())})

    def _entry(self, name: str) -> AdapterEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModel(f"adapter {name!r} is in no bank this replica has loaded") from None


def read_router(store: AdapterStore, cache: DiskCache, manifest: BankManifest) -> Router:
    """The router of a bank, through the disk cache. Raises UnknownModel if the bank has none, AdapterUnavailable if
    it cannot be fetched now, AdapterMissing if it is not in the store, BankError if it cannot be read."""
    if manifest.router is None:
        raise UnknownModel(f"bank {manifest.version} has no router")
    with cache.lease(store, manifest.router) as folder:
        if manifest.router.encoder is None:
            return Router.load(folder)
        with cache.lease(store, manifest.router.encoder) as encoder:
            return Router.load(folder, encoder=encoder)


def qualified(mix: Mix, manifest: BankManifest) -> Mix:
    """`mix` with the engine's adapter names, `name@version`. Raises UnknownModel."""
    keys = _qualified_by_name(mix.names, manifest)
    for name in mix.names:
        if name not in keys:
            raise UnknownModel(f"adapter {name!r} does not exist in bank {manifest.version}")
    return _renamed(mix, keys.__getitem__)


def qualified_names(names: Iterable[str], manifest: BankManifest) -> list[str]:
    """The engine's names of a bank's adapters. Raises BankError for an adapter the bank does not have."""
    names = list(names)
    keys = _qualified_by_name(names, manifest)
    missing = [name for name in names if name not in keys]
    if missing:
        raise BankError(f"bank {manifest.version} has no adapter {missing[0]!r}, which pinned_adapters names")
    return [keys[name] for name in names]


def _qualified_by_name(names: Iterable[str], manifest: BankManifest) -> dict[str, str]:
    """The engine's names of these adapters, without those that the bank does not have. A bank may have 100,000."""
    wanted = set(names)
    return {entry.name: entry.qualified_name for entry in manifest.adapters if entry.name in wanted}


def successors(resident: Iterable[str], manifest: BankManifest) -> list[str]:
    """The engine's names of a bank's adapters that replace resident ones: same name, other bytes. Requests will need
    them as soon as the bank is current."""
    present = set(resident)
    names = {unqualify(name) for name in present}
    return [
        entry.qualified_name
        for entry in manifest.adapters
        if entry.name in names and entry.qualified_name not in present
    ]


def unqualified(mix: Mix) -> Mix:
    """`mix` with adapter names as in the bank: the inverse of `qualified`."""
    return _renamed(mix, unqualify)


def _renamed(mix: Mix, name: Callable[[str], str]) -> Mix:
    renamed = Mix.of([(name(part.name), part.weight) for part in mix.adapters])
    return replace(renamed, recipes=mix.recipes, left_out=mix.left_out)
