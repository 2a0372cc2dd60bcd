"""Changes `current.json`, which says what bank serves, always by a conditional write on the state that was read.

While garbage is collected nobody else may change it: a publisher that skipped an upload because the file was there
could otherwise find it deleted. The collector's claim runs out by itself when it dies.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from dlp_core.bank.manifest import POINTER_KEY, BankManifest, Pointer, manifest_key
from dlp_core.bank.reading import current, find_current
from dlp_core.errors import BankError, Conflict
from dlp_core.store.protocol import AdapterStore

State = tuple[Pointer, str]
"""A pointer as it was read, and its etag."""

CLAIM = timedelta(seconds=120)
"""A garbage collection that has not renewed its claim for this long has died. Clocks may differ by half of it."""


def read_free(store: AdapterStore) -> State | None:
    """The pointer, None if nothing was published yet. Raises Conflict while garbage is collected."""
    state = find_current(store)
    if state is not None and state[0].collecting is not None:
        age = datetime.now(UTC) - state[0].collecting
        if age < CLAIM:
            raise Conflict(
                f"garbage is being collected in {store.uri}; retry when `dlp bank gc` has ended, or, if it was killed, "
                f"in {(CLAIM - age).total_seconds():.0f} s",
                retry_after=5.0,
            )
    return state


def serve(store: AdapterStore, before: State | None, manifest: BankManifest, raw: bytes) -> None:
    """Lets `manifest` serve if the pointer is still as it was `before` (None: nothing was published)."""
    _require_conditions(store, manifest_key(manifest.version), raw)
    pointer = Pointer(
        version=manifest.version,
        previous=before[0].version if before else None,
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        published=datetime.now(UTC),
        pinned=before[0].pinned if before else (),
        collected=before[0].collected if before else None,
    )
    replace(store, before, pointer)


def replace(store: AdapterStore, before: State | None, pointer: Pointer) -> State:
    """Writes `pointer` over what was read as `before`. Raises Conflict if somebody else did meanwhile."""
    body = pointer.model_dump_json(indent=2).encode() + b"\n"
    try:
        if before is None:
            return pointer, store.put(POINTER_KEY, body, if_none_match=True)
        return pointer, store.put(POINTER_KEY, body, if_match=before[1])
    except Conflict:
        # If only the answer to our own write was lost, the store's retry met that very write.
        now, etag = current(store)
        if now == pointer:
            return now, etag
        raise Conflict(
            f"the bank in {store.uri} was changed by somebody else meanwhile; see `dlp bank show`, then try again"
        ) from None


def _require_conditions(store: AdapterStore, key: str, raw: bytes) -> None:
    """Proves that the store honours conditions, by creating again what is there: harmless if it does not."""
    try:
        store.put(key, raw, if_none_match=True)
    except Conflict:
        return
    raise BankError(
        f"{store.uri} ignores conditional writes, so two publishers could overwrite each other; "
        "use a server that honours If-None-Match and If-Match on PUT (AWS S3, MinIO, SeaweedFS do)"
    )
