"""The bank under evaluation: a published version, or a folder that is not published yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.adapter.examination import Rules
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.folder import FOLDER_FILE
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.reading import find_current, load_manifest
from dlp_core.bank.source import BankSource, read_router
from dlp_core.errors import NotFound
from dlp_core.router import Router
from dlp_core.store.folder import FolderStore
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore


@dataclass(frozen=True, slots=True)
class JudgedBank:
    """A bank, its router, and where its adapters come from."""

    manifest: BankManifest
    router: Router | None
    source: BankSource
    store: AdapterStore | None
    """The store it is published in; None for an unpublished folder."""
    location: str
    """Where it was opened: the URI of a store or the path of a folder, without a version."""


@contextmanager
def open_bank(location: str, cache: DiskCache) -> Iterator[JudgedBank]:
    """Open the bank at `location` for the length of the block: a published bank (its URI; `#VERSION` selects a version
    other than the current one) or a bank folder (with bank.json), local or in a store.

    Raises NotFound if there is neither, UnknownModel for an unknown version, and what reading the bank raises.
    """
    uri, version = split_location(location)
    store = open_store(uri)
    if version or find_current(store) is not None or not _is_bank_folder(store):
        yield _read(store, load_manifest(store, version), store, cache, uri)
        return
    with local_copy(uri) as folder, TemporaryDirectory(prefix="dlp-eval-") as work:
        scratch = FolderStore(Path(work))
        yield _read(scratch, publish(scratch, folder, rules=Rules(hub_links=True)), None, cache, uri)


def split_location(location: str) -> tuple[str, str | None]:
    """URI and version of `URI#VERSION`; None is the current version."""
    uri, _, version = location.partition("#")
    return uri, version or None


def _is_bank_folder(store: AdapterStore) -> bool:
    try:
        store.head(FOLDER_FILE)
    except NotFound:
        return False
    return True


def _read(
    store: AdapterStore, manifest: BankManifest, published: AdapterStore | None, cache: DiskCache, location: str
) -> JudgedBank:
    source = BankSource(store, cache)
    source.add(manifest)
    router = None if manifest.router is None else read_router(store, cache, manifest)
    return JudgedBank(manifest, router, source, published, location)
