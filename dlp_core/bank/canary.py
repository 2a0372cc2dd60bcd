"""Puts a bank on trial beside the current one: as a canary, which serves a share of the requests, or as a shadow, which
serves none.

All of it is in the pointer, and every change is a conditional write (dlp_core/bank/pointer.py): of two writers one wins
and the other gets Conflict. What the replicas do with it is in dlp_core/bank/rollout.py.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime

from dlp_core.bank import pointer
from dlp_core.bank.manifest import Canary, CanaryEnd, Pointer, Shadow
from dlp_core.bank.pointer import State
from dlp_core.bank.publish import read_whole
from dlp_core.bank.reading import current
from dlp_core.errors import Conflict, InvalidRequest
from dlp_core.fleet.trial import Signal, StickyBy
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import Progress, silent

SHARE = 0.05
"""The canary's share of the requests unless another is given."""


def start_canary(
    store: AdapterStore,
    version: str,
    *,
    share: float = SHARE,
    sticky_by: StickyBy = "user",
    promote_after_requests: int | None = None,
    promote_after_hours: float | None = None,
    overlooks: tuple[Signal, ...] = (),
    progress: Progress = silent,
) -> Canary:
    """Let `version` serve a share of the requests. The version that is the canary already starts anew, with counts of
    its own. `overlooks` are signals that are no evidence against it. `progress` counts the files that are looked up.

    Raises InvalidRequest for a share that is none, or for the current bank; UnknownModel, BankError and Conflict as
    dlp_core.bank.publish.rollback, and Conflict while another version is the canary.
    """
    if not 0 < share < 1:
        raise InvalidRequest(f"share is {share:g}; a canary's share lies between 0 and 1, such as {SHARE}")
    before = _read(store)
    now = before[0]
    _refuse_current(store, now, version)
    if now.canary is not None and now.canary.version != version:
        raise Conflict(
            f"bank {now.canary.version} is the canary in {store.uri}; end that first: `dlp bank promote`, or "
            "`dlp bank canary --stop`"
        )
    canary = Canary(
        id=_new_id(),
        version=version,
        manifest_sha256=_digest_of_whole(store, version, progress),
        share=share,
        sticky_by=sticky_by,
        began=datetime.now(UTC),
        promote_after_requests=promote_after_requests,
        promote_after_hours=promote_after_hours,
        overlooks=overlooks,
    )
    ended = pointer.without_canary(now, "stopped", "started anew")
    _change(store, before, ended, canary=canary, shadow=_unless(now.shadow, version))
    return canary


def stop_canary(store: AdapterStore) -> CanaryEnd:
    """End the canary; the current bank stays. Raises InvalidRequest if none runs, Conflict."""
    before = _read(store)
    canary = _running(store, before[0])
    return _end(store, before, pointer.without_canary(before[0], "stopped", f"{canary.version} was stopped"))


def roll_back_canary(store: AdapterStore, id: str, reason: str) -> CanaryEnd | None:
    """End the canary of the trial `id` because of its trial's alarm; None if it has ended already. Raises Conflict."""
    before = _read(store)
    if before[0].canary is None or before[0].canary.id != id:
        return None
    return _end(store, before, pointer.without_canary(before[0], "rolled_back", reason))


def promote(store: AdapterStore, *, id: str | None = None, reason: str = "promoted by an operator") -> CanaryEnd | None:
    """Make the canary the current bank; with an `id` only if it is the canary of that trial, otherwise None.

    Raises InvalidRequest if no canary runs, Conflict.
    """
    before = _read(store)
    if id is not None and (before[0].canary is None or before[0].canary.id != id):
        return None
    canary = _running(store, before[0])
    ended = pointer.without_canary(before[0], "promoted", reason)
    return _end(store, before, pointer.switched(ended, canary.version, canary.manifest_sha256))


def start_shadow(store: AdapterStore, version: str, *, generate: bool = False, progress: Progress = silent) -> Shadow:
    """Compare what `version` would do with what the current bank does; in place of another shadow.

    Raises InvalidRequest for the current bank and the canary; UnknownModel, BankError and Conflict as `start_canary`.
    """
    before = _read(store)
    now = before[0]
    _refuse_current(store, now, version)
    if now.canary is not None and now.canary.version == version:
        raise InvalidRequest(f"bank {version} is the canary in {store.uri}; a shadow is another version")
    shadow = Shadow(
        id=_new_id(),
        version=version,
        manifest_sha256=_digest_of_whole(store, version, progress),
        began=datetime.now(UTC),
        generate=generate,
    )
    _change(store, before, now, shadow=shadow)
    return shadow


def stop_shadow(store: AdapterStore) -> Shadow:
    """End the shadow, and return what it was. Raises InvalidRequest if there is none, Conflict."""
    before = _read(store)
    shadow = before[0].shadow
    if shadow is None:
        raise InvalidRequest(f"no shadow runs in {store.uri}; `dlp bank shadow VERSION` starts one")
    _change(store, before, before[0], shadow=None)
    return shadow


def _read(store: AdapterStore) -> State:
    """The pointer. Raises NotFound if nothing is published, Conflict during a garbage collection."""
    return pointer.read_free(store) or current(store)


def _change(store: AdapterStore, before: State, now: Pointer, **fields: object) -> None:
    pointer.replace(store, before, now.model_copy(update=fields))


def _end(store: AdapterStore, before: State, now: Pointer) -> CanaryEnd:
    pointer.replace(store, before, now)
    assert now.canary_end is not None
    return now.canary_end


def _running(store: AdapterStore, now: Pointer) -> Canary:
    if now.canary is None:
        raise InvalidRequest(f"no canary runs in {store.uri}; `dlp bank canary VERSION` starts one")
    return now.canary


def _refuse_current(store: AdapterStore, now: Pointer, version: str) -> None:
    if version == now.version:
        raise InvalidRequest(f"bank {version} is the current one in {store.uri}; name another (`dlp bank list`)")


def _digest_of_whole(store: AdapterStore, version: str, progress: Progress) -> str:
    return hashlib.sha256(read_whole(store, version, progress=progress)[1]).hexdigest()


def _unless(shadow: Shadow | None, version: str) -> Shadow | None:
    return None if shadow is not None and shadow.version == version else shadow


def _new_id() -> str:
    return uuid.uuid4().hex[:12]
