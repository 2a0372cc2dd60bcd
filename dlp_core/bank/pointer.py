"""Changes `current.json`, the pointer to the current bank, always by a conditional write on the state that was read.

During a garbage collection no other writer may change it: otherwise a publisher could skip an upload because the file
exists, and the collection could delete it. The collector's claim expires if the collector dies.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Literal

from dlp_core.bank.manifest import POINTER_KEY, BankManifest, CanaryEnd, Pointer, manifest_key
from dlp_core.bank.reading import current, find_current
from dlp_core.errors import BankError, Conflict
from dlp_core.store.protocol import AdapterStore

State = tuple[Pointer, str]
"""A pointer that was read, and its etag."""

CLAIM = timedelta(seconds=120)
"""A garbage collection that has not renewed its claim for this long is dead. Clocks may differ by half of it."""


def read_free(store: AdapterStore) -> State | None:
    """The pointer, None if nothing is published yet. Raises Conflict during a garbage collection."""
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
    """Point at `manifest` and end a canary, if the pointer is still in the state `before` (None: nothing is
    published)."""
    _require_conditional_writes(store, manifest_key(manifest.version), raw)
    raw_digest = hashlib.sha256(raw).hexdigest()
    if before is None:
        pointer = Pointer(
            version=manifest.version, previous=None, manifest_sha256=raw_digest, published=datetime.now(UTC)
        )
    else:
        now = without_canary(before[0], "stopped", f"bank {manifest.version} was made the current one")
        pointer = switched(now, manifest.version, raw_digest)
    replace(store, before, pointer)


def switched(before: Pointer, version: str, manifest_sha256: str) -> Pointer:
    """`before` with another current bank, which is then neither canary nor shadow."""
    return before.model_copy(
        update={
            "version": version,
            "previous": before.version,
            "manifest_sha256": manifest_sha256,
            "published": datetime.now(UTC),
            "collecting": None,
            "shadow": None if before.shadow is not None and before.shadow.version == version else before.shadow,
        }
    )


def without_canary(before: Pointer, outcome: Literal["promoted", "stopped", "rolled_back"], reason: str) -> Pointer:
    """`before` with its canary ended, if it has one."""
    canary = before.canary
    if canary is None:
        return before
    end = CanaryEnd(id=canary.id, version=canary.version, ended=datetime.now(UTC), outcome=outcome, reason=reason)
    return before.model_copy(update={"canary": None, "canary_end": end})


def replace(store: AdapterStore, before: State | None, pointer: Pointer) -> State:
    """Replace the state `before` with `pointer`. Raises Conflict if another writer changed it meanwhile."""
    body = (
        pointer.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"
    )  # what is not used, older readers lack
    try:
        if before is None:
            return pointer, store.put(POINTER_KEY, body, if_none_match=True)
        return pointer, store.put(POINTER_KEY, body, if_match=before[1])
    except Conflict:
        # If only the response to our own write was lost, the store's retry conflicted with that write.
        now, etag = current(store)
        if now == pointer:
            return now, etag
        raise Conflict(
            f"the bank in {store.uri} was changed by another writer meanwhile; see `dlp bank show`, then try again"
        ) from None


def _require_conditional_writes(store: AdapterStore, key: str, raw: bytes) -> None:
    """Check that the store honours conditions by creating an existing object again: harmless if it does not."""
    try:
        store.put(key, raw, if_none_match=True)
    except Conflict:
        return
    raise BankError(
        f"{store.uri} ignores conditional writes, so two publishers could overwrite each other; "
        "use a server that honours If-None-Match and If-Match on PUT (AWS S3, MinIO, SeaweedFS do), and for Google "
        "Cloud Storage a gs:// URI"
    )
