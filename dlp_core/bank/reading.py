"""Reads banks from a store: the pointer, manifests and the list of versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from dlp_core.adapter.names import validate_name
from dlp_core.bank.manifest import (
    MANIFESTS,
    POINTER_KEY,
    BankManifest,
    Canary,
    Pointer,
    Shadow,
    manifest_key,
    version_at,
)
from dlp_core.errors import BankError, DigestMismatch, NotFound, UnknownModel
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem

_READERS = 8


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class BankVersion:
    """One line of `list_versions`. `size` is in bytes."""

    version: str
    created: datetime
    adapters: int
    recipes: int
    size: int
    current: bool
    pinned: bool
    canary: bool
    shadow: bool


def current(store: AdapterStore) -> tuple[Pointer, str]:
    """The pointer and its etag. Raises NotFound if nothing is published there, BankError if it is damaged."""
    with _needs_pointer(store):
        stored = store.get(POINTER_KEY)
    return _parse(Pointer, stored.data, POINTER_KEY, store), stored.etag


def current_if_changed(store: AdapterStore, etag: str) -> tuple[Pointer, str] | None:
    """`current`, or None if the pointer still has this etag. Raises what `current` raises."""
    with _needs_pointer(store):
        stored = store.get_if_changed(POINTER_KEY, etag)
    return None if stored is None else (_parse(Pointer, stored.data, POINTER_KEY, store), stored.etag)


def load_manifest(store: AdapterStore, version: str | None = None) -> BankManifest:
    """The manifest of `version`, by default of the current bank.

    Raises UnknownModel for an unknown version, DigestMismatch if the bytes do not match the pointer,
    BankError if the manifest is malformed or inconsistent, NotFound if nothing is published.
    """
    if version is not None:
        return read_version(store, version)[0]
    return load_from_pointer(store, current(store)[0])


def load_from_pointer(store: AdapterStore, pointer: Pointer | Canary | Shadow) -> BankManifest:
    """The manifest that a pointer, its canary or its shadow names. Raises what `load_manifest` raises."""
    manifest, raw = read_version(store, pointer.version)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != pointer.manifest_sha256:
        raise DigestMismatch(
            f"{manifest_key(pointer.version)!r} in {store.uri}: {POINTER_KEY} records sha256 "
            f"{pointer.manifest_sha256}, found {digest}; roll back or publish again"
        )
    return manifest


def list_versions(store: AdapterStore) -> list[BankVersion]:
    """Every bank in the store, newest first."""
    before = find_current(store)
    pointer = before[0] if before else None

    def line(manifest: BankManifest) -> BankVersion:
        version = manifest.version
        return BankVersion(
            version,
            manifest.created,
            len(manifest.adapters),
            len(manifest.recipes),
            manifest.size,
            current=pointer is not None and version == pointer.version,
            pinned=pointer is not None and version in pointer.pinned,
            canary=pointer is not None and pointer.canary is not None and version == pointer.canary.version,
            shadow=pointer is not None and pointer.shadow is not None and version == pointer.shadow.version,
        )

    versions = [version_at(info.key) for info in store.list(MANIFESTS)]
    with ThreadPoolExecutor(_READERS) as pool:
        banks = [line(manifest) for manifest in pool.map(lambda version: load_manifest(store, version), versions)]
    return sorted(banks, key=lambda bank: bank.created, reverse=True)


def read_version(store: AdapterStore, version: str) -> tuple[BankManifest, bytes]:
    """The manifest of `version` and the bytes it was read from. Raises UnknownModel or BankError."""
    key = manifest_key(validate_name(version))
    try:
        raw = store.get(key).data
    except NotFound:
        raise UnknownModel(f"there is no bank version {version!r} in {store.uri}; see `dlp bank list`") from None
    manifest = _parse(BankManifest, raw, key, store)
    if manifest.version != version:
        raise BankError(f"{key!r} in {store.uri} names version {manifest.version!r}; publish the bank again")
    return manifest, raw


def find_current(store: AdapterStore) -> tuple[Pointer, str] | None:
    """`current`, or None if nothing is published yet."""
    try:
        return current(store)
    except NotFound:
        return None


@contextmanager
def _needs_pointer(store: AdapterStore) -> Iterator[None]:
    try:
        yield
    except NotFound:
        raise NotFound(f"no bank is published in {store.uri}; run: dlp bank publish FOLDER --bank URI") from None


def _parse(kind: type[R], raw: bytes, key: str, store: AdapterStore) -> R:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise BankError(
            f"{key!r} in {store.uri} is damaged: {first_problem(error)}; roll back or publish again"
        ) from None
