"""What each ingress replica has counted of a canary or a shadow, in the store, where every replica can add it up.

    trials/<id>/<replica>.json

Each replica overwrites its own object, so no write is conditional, and what a replica had counted outlives it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import ValidationError

from dlp_core.bank.manifest import TRIALS
from dlp_core.errors import NotFound
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record

R = TypeVar("R", bound=Record)


class SharedCounts(Generic[R]):
    """The counts of the trial `id`, records of one `kind`. Methods block, and raise StoreUnavailable.

    What `read` returns is always what the store holds, this replica's own counts included: all replicas look at the
    same sums, one after the other.
    """

    def __init__(self, store: AdapterStore, kind: type[R], id: str) -> None:
        self._store = store
        self._kind = kind
        self._prefix = f"{TRIALS}{id}/"
        self._written: R | None = None
        self._known: dict[str, tuple[str, R]] = {}  # etag and counts by key

    def write(self, replica: str, counts: R) -> None:
        """Store what a replica has counted so far, unless it is what was stored last."""
        if counts != self._written:
            self._store.put(f"{self._prefix}{replica}.json", counts.model_dump_json(exclude_defaults=True).encode())
            self._written = counts

    def read(self) -> list[R]:
        """The counts of all replicas. An object that is no such record is left out."""
        for info in self._store.list(self._prefix):
            if self._known.get(info.key, ("", None))[0] != info.etag:
                try:
                    stored = self._store.get(info.key)
                    self._known[info.key] = stored.etag, self._kind.model_validate_json(stored.data)
                except (NotFound, ValidationError):
                    continue
        return [counts for _, counts in self._known.values()]
