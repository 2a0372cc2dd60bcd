"""Keeps the ingress on the banks that `current.json` names: waits for the first, then follows changes. Beside the
current bank there may be a canary and a shadow, which come into use once they are prepared, and whose failure leaves
the current one alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from dlp_core.bank.manifest import BankManifest, Canary, Pointer, Shadow
from dlp_core.bank.reading import current, current_if_changed, load_from_pointer, load_manifest
from dlp_core.errors import (
    AdapterMissing,
    AdapterRefused,
    BankError,
    DeadlineExceeded,
    DLPError,
    EngineFailed,
    EngineFull,
    StoreUnavailable,
    UnknownModel,
)
from dlp_core.store.protocol import AdapterStore

log = logging.getLogger("ray.serve")

FIRST_RETRY_S = 0.5

_REPLICAS = (DeadlineExceeded, EngineFailed, EngineFull)
"""Temporary errors of replicas, which say nothing about the bank."""

_UNFIT = (AdapterMissing, AdapterRefused, BankError, UnknownModel)
"""Permanent errors: another bank must be published."""


class NoUsableBank(StoreUnavailable):
    """The published bank can never be served: another one must be published."""

    code = "bank_invalid"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The published bank that cannot be served, and the reason."""

    version: str
    reason: str


Entry = TypeVar("Entry", Canary, Shadow)


class Beside(NamedTuple, Generic[Entry]):
    """A bank beside the current one: what the pointer says of it, and its manifest."""

    entry: Entry
    bank: BankManifest


class BankFollower:
    """Holds the manifest that new requests use. Switches to a bank only after `prepare(manifest)` succeeds.

    If the store later stops answering or the next bank is refused, the manifest in memory stays in use. A replica that
    starts while the current bank cannot be loaded serves the previous one. `on_poll` is called after every poll.
    """

    def __init__(
        self,
        store: AdapterStore,
        *,
        poll_s: float,
        prepare: Callable[[BankManifest], Awaitable[object]],
        on_poll: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._poll_s = poll_s
        self._prepare = prepare
        self._on_poll = on_poll
        self._manifest: BankManifest | None = None
        self._etag: str | None = None  # of the followed pointer; None until its bank is in use
        self._obstacle: DLPError = StoreUnavailable("it has not been read yet")
        self._logged = ""
        self._look_lock = asyncio.Lock()
        self.pointer: Pointer | None = None
        """As it was read last."""
        self.canary: Beside[Canary] | None = None
        """The canary in use."""
        self.shadow: Beside[Shadow] | None = None
        self.refused: Refusal | None = None
        self.refused_beside: dict[str, Refusal] = {}
        """The "canary" or the "shadow" that cannot be used."""
        self.settled = asyncio.Event()
        """Set once there is a bank, or a reason for having none."""

    def bank(self) -> BankManifest:
        """The bank in use. Raises StoreUnavailable with the reason until one is ready, NoUsableBank if none can be."""
        if self._manifest is None:
            kind = NoUsableBank if isinstance(self._obstacle, _UNFIT) else StoreUnavailable
            reason = f"bank {self._store.uri} is not ready: {self._obstacle.message}"
            raise kind(reason, retry_after=self._poll_s)
        return self._manifest

    def versions_in_use(self) -> dict[str, str]:
        """The versions that requests may get, by role: serving, canary, shadow."""
        banks = {
            "serving": self._manifest,
            "canary": self.canary and self.canary.bank,
            "shadow": self.shadow and self.shadow.bank,
        }
        return {role: bank.version for role, bank in banks.items() if bank is not None}

    async def follow(self) -> None:
        """Poll the pointer every `poll_s`, more often while there is no bank. Never returns."""
        wait = FIRST_RETRY_S
        while True:
            try:
                await self.look()
                wait = self._poll_s
                self.settled.set()
            except DLPError as error:
                wait = min(2 * wait, self._poll_s)
                if not isinstance(error, _REPLICAS):
                    self.settled.set()
            self._on_poll()
            await asyncio.sleep(wait)

    async def look(self) -> None:
        """Switch to the banks that the pointer names, now. Raises the reason if one cannot be used; nothing changes
        then about the others."""
        async with self._look_lock:
            try:
                state = await asyncio.to_thread(self._read_pointer)
                if state is None:
                    return
                pointer, etag = state
                self.pointer = pointer
                self._drop_ended(pointer)
                try:
                    await self._switch_to(pointer.version, lambda: load_from_pointer(self._store, pointer))
                except _UNFIT as error:
                    self.refused = Refusal(pointer.version, error.message)
                    previous = pointer.previous
                    if self._manifest is None and previous is not None:
                        self._obstacle = error
                        await self._switch_to(previous, lambda: load_manifest(self._store, previous))
                    raise
                self.refused = None
                self.settled.set()
                problems: list[DLPError] = []
                self.canary = await self._beside("canary", pointer.canary, self.canary, problems)
                self.shadow = await self._beside("shadow", pointer.shadow, self.shadow, problems)
                if problems:
                    raise problems[0]
                self._etag, self._logged = etag, ""
            except DLPError as error:
                if error.message != self._logged:
                    log.error("bank %s: %s", self._store.uri, error.message)
                self._obstacle, self._logged = error, error.message
                raise

    def _read_pointer(self) -> tuple[Pointer, str] | None:
        """The pointer and its etag; None, without a transfer, if it has not changed since the switch to its bank."""
        return current(self._store) if self._etag is None else current_if_changed(self._store, self._etag)

    def _drop_ended(self, pointer: Pointer) -> None:
        """Stop using what the pointer no longer names."""
        if self.canary is not None and self.canary.entry != pointer.canary:
            log.info("bank %s: canary %s has ended", self._store.uri, self.canary.entry.version)
            self.canary = None
        if self.shadow is not None and self.shadow.entry != pointer.shadow:
            self.shadow = None

    async def _beside(
        self, role: str, entry: Entry | None, used: Beside[Entry] | None, problems: list[DLPError]
    ) -> Beside[Entry] | None:
        """The bank beside the current one, once it is prepared; None if there is none or it cannot be used."""
        if entry is None or used is not None:
            self.refused_beside.pop(role, None)
            return used
        try:
            bank = await asyncio.to_thread(load_from_pointer, self._store, entry)
            await self._prepare(bank)
        except DLPError as error:
            if isinstance(error, _UNFIT):
                self.refused_beside[role] = Refusal(entry.version, error.message)
            problems.append(type(error)(f"{role} {entry.version}: {error.message}", retry_after=error.retry_after))
            return None
        self.refused_beside.pop(role, None)
        log.info("bank %s: version %s is in use as a %s", self._store.uri, entry.version, role)
        return Beside(entry, bank)

    async def _switch_to(self, version: str, read: Callable[[], BankManifest]) -> None:
        if self._manifest is not None and self._manifest.version == version:
            return
        manifest = await asyncio.to_thread(read)
        if self._manifest is None:
            self._obstacle = StoreUnavailable(
                f"version {version} is waiting for a router and a backbone replica to start"
            )
        await self._prepare(manifest)
        self._manifest = manifest
        log.info("bank %s: serving version %s", self._store.uri, version)
