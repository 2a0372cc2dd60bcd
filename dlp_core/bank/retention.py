"""Retention: pins, and garbage collection of files that no kept bank needs.

The current bank, its canary and shadow, the previous one, every pinned one and the newest few are kept. A collection
first claims the pointer (dlp_core/bank/pointer.py), so that its garbage cannot come into use while it deletes.
Manifests are deleted before files: an interrupted collection leaves no manifest without its files, and the next one
finds the rest.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from dlp_core.bank import pointer
from dlp_core.bank.manifest import MANIFESTS, TRIALS, BankManifest, manifest_key, version_at
from dlp_core.bank.pointer import CLAIM, State
from dlp_core.bank.reading import current, load_manifest, read_version
from dlp_core.errors import BankError, Conflict, NotFound, UnknownModel
from dlp_core.store.protocol import AdapterStore, ObjectInfo
from dlp_core.store.transfers import Progress, silent

KEEP = 5
"""Newest banks to keep, in addition to those that must stay."""

_CONCURRENT_DELETES = 8


@dataclass(frozen=True, slots=True)
class Garbage:
    """Outcome of `collect`, `size` in bytes. `versions` and `keys` were removed, or would be in a dry run."""

    kept: tuple[str, ...]
    versions: tuple[str, ...]
    keys: tuple[str, ...]
    size: int


def pin(store: AdapterStore, version: str) -> None:
    """Protect a bank from collection. Raises UnknownModel if there is no such version, Conflict if the pointer changes
    meanwhile."""
    read_version(store, version)
    before = _read_unclaimed(store)
    if version not in before[0].pinned:
        _change(store, before, pinned=(*before[0].pinned, version))


def unpin(store: AdapterStore, version: str) -> None:
    """Unprotect a bank. Raises UnknownModel if it is not pinned, Conflict if the pointer changes meanwhile."""
    before = _read_unclaimed(store)
    if version not in before[0].pinned:
        raise UnknownModel(
            f"bank version {version!r} is not pinned in {store.uri}; pinned: {', '.join(before[0].pinned) or 'none'}"
        )
    _change(store, before, pinned=tuple(name for name in before[0].pinned if name != version))


def collect(store: AdapterStore, *, keep: int = KEEP, dry_run: bool = False, progress: Progress = silent) -> Garbage:
    """Delete banks that are not kept, and files that no kept bank needs. `dry_run` only reports them. `progress` counts
    objects.

    Raises NotFound if nothing is published, BankError if a bank that must be kept cannot be read (nothing is
    deleted then), Conflict with a concurrent publish or collection, StoreUnavailable if the store fails.
    """
    before = _read_unclaimed(store)
    if dry_run:
        return _find(store, before, keep)[0]
    claim = _Claim(store, before)
    try:
        garbage, objects = _find(store, before, keep)
        manifests = [info for info in objects if info.key.startswith(MANIFESTS)]
        done = 0
        for group in (manifests, [info for info in objects if info not in manifests]):
            for start in range(0, len(group), _CONCURRENT_DELETES):
                claim.renew()
                batch = [info.key for info in group[start : start + _CONCURRENT_DELETES]]
                with ThreadPoolExecutor(_CONCURRENT_DELETES) as pool:
                    list(pool.map(store.delete, batch))
                done += len(batch)
                progress(done, len(objects))
        return garbage
    finally:
        claim.release()


class _Claim:
    """The right to delete: `collecting` in the pointer, renewed long before it expires."""

    def __init__(self, store: AdapterStore, before: State) -> None:
        self._store = store
        self._renewed = time.monotonic()
        self._state = _change(store, before, collecting=datetime.now(UTC))

    def renew(self) -> None:
        """Renew the claim if it is due. Raises Conflict if it was lost."""
        if time.monotonic() - self._renewed > CLAIM.total_seconds() / 4:
            began = time.monotonic()
            self._state = _change(self._store, self._state, collecting=datetime.now(UTC))
            self._renewed = began

    def release(self) -> None:
        with suppress(Conflict):  # it expired and another writer has changed the pointer
            _change(self._store, self._state, collecting=None, collected=datetime.now(UTC))


def _read_unclaimed(store: AdapterStore) -> State:
    """The pointer. Raises NotFound if nothing is published, Conflict during a garbage collection."""
    return pointer.read_free(store) or current(store)


def _change(store: AdapterStore, before: State, **fields: object) -> State:
    return pointer.replace(store, before, before[0].model_copy(update=fields))


def _find(store: AdapterStore, state: State, keep: int) -> tuple[Garbage, list[ObjectInfo]]:
    now = state[0]
    required = now.versions
    listed = {info.key: info for info in store.list(MANIFESTS)}
    manifests: list[BankManifest] = []
    for version in map(version_at, listed):
        try:
            manifests.append(load_manifest(store, version))
        except BankError as error:
            if version in required:
                raise BankError(f"nothing was deleted: {error.message}") from error
    missing = [version for version in required if manifest_key(version) not in listed]
    if now.version in missing:
        raise NotFound(f"nothing was deleted: the manifest of the current bank {now.version} is missing; publish again")
    newest = sorted(manifests, key=lambda manifest: manifest.created, reverse=True)
    others = [manifest for manifest in newest if manifest.version not in required][:keep]
    kept = [manifest for manifest in newest if manifest.version in required or manifest in others]
    needed = {key for manifest in kept for key, _ in manifest.objects()}
    needed |= {manifest_key(manifest.version) for manifest in kept}
    trials = tuple(f"{TRIALS}{one.id}/" for one in (now.canary, now.canary_end, now.shadow) if one is not None)
    unneeded = [
        info
        for infos in (listed.values(), *map(store.list, ("adapters/", "routers/", "encoders/", TRIALS)))
        for info in infos
        if info.key not in needed and not info.key.startswith(trials)
    ]
    garbage = Garbage(
        kept=tuple(manifest.version for manifest in kept),
        versions=tuple(version_at(info.key) for info in unneeded if info.key.startswith(MANIFESTS)),
        keys=tuple(info.key for info in unneeded),
        size=sum(info.size for info in unneeded),
    )
    return garbage, unneeded
