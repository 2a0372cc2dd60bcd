"""Keeps the ingress on the bank that `current.json` points at: waits for the first, follows publish and rollback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dlp_core.bank import BankManifest, current, load_manifest
from dlp_core.errors import AdapterRefused, BankError, DLPError, StoreUnavailable
from dlp_core.store import AdapterStore

log = logging.getLogger("ray.serve")

FIRST_RETRY_S = 0.5


class NoUsableBank(StoreUnavailable):
    """There is a bank, and waiting will not make it fit to serve: another has to be published."""

    code = "bank_invalid"


class BankFollower:
    """The manifest new requests use. A bank takes over only after `prepare(manifest)` succeeded for it.

    A store that stops answering later changes nothing here: the manifest in memory goes on serving.
    """

    def __init__(
        self, store: AdapterStore, *, poll_s: float, prepare: Callable[[BankManifest], Awaitable[object]]
    ) -> None:
        self._store = store
        self._poll_s = poll_s
        self._prepare = prepare
        self._manifest: BankManifest | None = None
        self._obstacle: DLPError = StoreUnavailable("it was not read yet")
        self._logged = ""

    def bank(self) -> BankManifest:
        """Raises StoreUnavailable with the reason until a first bank is ready, NoUsableBank if it cannot be."""
        if self._manifest is None:
            kind = NoUsableBank if isinstance(self._obstacle, BankError | AdapterRefused) else StoreUnavailable
            reason = f"bank {self._store.uri} is not ready: {self._obstacle.message}"
            raise kind(reason, retry_after=self._poll_s)
        return self._manifest

    async def follow(self) -> None:
        """Runs for ever: looks at the pointer every `poll_s`, sooner while there is no bank at all."""
        wait = FIRST_RETRY_S
        while True:
            try:
                await self._look()
                wait = self._poll_s
            except DLPError as error:
                if error.message != self._logged:
                    log.error("bank %s: %s", self._store.uri, error.message)
                self._obstacle, self._logged = error, error.message
                wait = min(2 * wait, self._poll_s)
            await asyncio.sleep(wait)

    async def _look(self) -> None:
        manifest = await asyncio.to_thread(self._read_newer)
        if manifest is not None:
            self._obstacle = StoreUnavailable(
                f"version {manifest.version} waits for a router and a backbone replica to start"
            )
            await self._prepare(manifest)
            self._manifest = manifest
            log.info("bank %s: version %s serves", self._store.uri, manifest.version)
        self._logged = ""

    def _read_newer(self) -> BankManifest | None:
        """The bank that serves by now, or None if that is the one in use."""
        pointer, _ = current(self._store)
        in_use = self._manifest is not None and self._manifest.version == pointer.version
        return None if in_use else load_manifest(self._store)
