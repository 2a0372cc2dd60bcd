"""Keeps the ingress on the bank that `current.json` points at: waits for the first, follows publish and rollback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dlp_core.bank.manifest import BankManifest, Pointer
from dlp_core.bank.reading import current, current_if_changed, load_manifest, load_promised
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
"""Errors of replicas that come and go: they say nothing about the bank."""

_UNFIT = (AdapterMissing, AdapterRefused, BankError, UnknownModel)
"""Errors that no waiting cures: another bank has to be published."""


class NoUsableBank(StoreUnavailable):
    """There is a bank, and waiting will not make it fit to serve: another has to be published."""

    code = "bank_invalid"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The bank that should serve by now and does not, and why."""

    version: str
    reason: str


class BankFollower:
    """The manifest new requests use. A bank takes over only after `prepare(manifest)` succeeded for it.

    A store that stops answering later changes nothing here: the manifest in memory goes on serving, and so it does
    where the next bank is refused. A replica that starts while the bank cannot be loaded serves the one before it.
    `looked` is called after every look of `follow`.
    """

    def __init__(
        self,
        store: AdapterStore,
        *,
        poll_s: float,
        prepare: Callable[[BankManifest], Awaitable[object]],
        looked: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._poll_s = poll_s
        self._prepare = prepare
        self._looked = looked
        self._manifest: BankManifest | None = None
        self._etag: str | None = None  # of the pointer that is followed; None while its bank has not taken over
        self._obstacle: DLPError = StoreUnavailable("it was not read yet")
        self._logged = ""
        self._looking = asyncio.Lock()
        self.refused: Refusal | None = None
        self.settled = asyncio.Event()
        """Set once there is a bank, or a reason why there is none."""

    def bank(self) -> BankManifest:
        """Raises StoreUnavailable with the reason until a first bank is ready, NoUsableBank if it cannot be."""
        if self._manifest is None:
            kind = NoUsableBank if isinstance(self._obstacle, _UNFIT) else StoreUnavailable
            reason = f"bank {self._store.uri} is not ready: {self._obstacle.message}"
            raise kind(reason, retry_after=self._poll_s)
        return self._manifest

    async def follow(self) -> None:
        """Runs for ever: looks at the pointer every `poll_s`, sooner while there is no bank at all."""
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
            self._looked()
            await asyncio.sleep(wait)

    async def look(self) -> None:
        """Lets the bank that the pointer names take over, now. Raises why it cannot; then all stays as it was."""
        async with self._looking:
            try:
                found = await asyncio.to_thread(self._read_pointer)
                if found is None:
                    return
                pointer, etag = found
                try:
                    await self._take_over(pointer.version, lambda: load_promised(self._store, pointer))
                except _UNFIT as error:
                    self.refused = Refusal(pointer.version, error.message)
                    before = pointer.previous
                    if self._manifest is None and before is not None:
                        self._obstacle = error
                        await self._take_over(before, lambda: load_manifest(self._store, before))
                    raise
                self.refused, self._etag, self._logged = None, etag, ""
            except DLPError as error:
                if error.message != self._logged:
                    log.error("bank %s: %s", self._store.uri, error.message)
                self._obstacle, self._logged = error, error.message
                raise

    def _read_pointer(self) -> tuple[Pointer, str] | None:
        """None if it is as it was when its bank took over: then no byte of it was sent."""
        return current(self._store) if self._etag is None else current_if_changed(self._store, self._etag)

    async def _take_over(self, version: str, read: Callable[[], BankManifest]) -> None:
        if self._manifest is not None and self._manifest.version == version:
            return
        manifest = await asyncio.to_thread(read)
        if self._manifest is None:
            self._obstacle = StoreUnavailable(f"version {version} waits for a router and a backbone replica to start")
        await self._prepare(manifest)
        self._manifest = manifest
        log.info("bank %s: version %s serves", self._store.uri, version)
