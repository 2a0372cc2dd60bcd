"""The evaluations of a bank's versions, side by side: each with what the gate would say of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dlp_core.errors import BankError, InvalidRequest, NotFound
from dlp_core.eval.results import Results, compare_banks, load, stored
from dlp_core.store.protocol import AdapterStore

SERVED = "top-p=0.9"
"""The arm that a server runs, by which banks are compared."""
MAX_DROP = 1.0
"""Points that a task may lose: the gate's own default."""
MOST = 100
"""Evaluations of a store that are read, the newest first."""

_READERS = 8


def judged(results: Sequence[tuple[str, Results]]) -> list[dict[str, Any]]:
    """Named results as JSON without their rows and examples, oldest first, each with its `verdict` against the bank
    before it on the same suite, None where there is none to compare with."""
    ordered = sorted(results, key=lambda pair: pair[1].created)
    return [
        {
            "path": name,
            **one.model_dump(mode="json", exclude={"rows", "examples"}),
            "verdict": _verdict(one, [earlier for _, earlier in ordered[:number]]),
        }
        for number, (name, one) in enumerate(ordered)
    ]


def judged_in(store: AdapterStore) -> dict[str, list[dict[str, Any]]]:
    """`judged` of the newest MOST evaluations in a bank's store, as `results`; `unreadable` names the others, each with
    the reason. Raises StoreUnavailable."""
    found: list[tuple[str, Results]] = []
    unreadable: list[dict[str, Any]] = []

    def read(key: str) -> Results | str | None:
        try:
            return load(store, key)
        except BankError as error:
            return error.message
        except NotFound:  # deleted meanwhile
            return None

    keys = stored(store)[:MOST]
    with ThreadPoolExecutor(_READERS) as pool:
        for key, one in zip(keys, pool.map(read, keys), strict=True):
            if isinstance(one, Results):
                found.append((key, one))
            elif one is not None:
                unreadable.append({"path": key, "reason": one})
    return {"results": judged(found), "unreadable": unreadable}


def _verdict(new: Results, earlier: Sequence[Results]) -> dict[str, Any] | None:
    for old in reversed(earlier):
        if old.suite.digest != new.suite.digest or old.bank.digest == new.bank.digest:
            continue
        try:
            difference = compare_banks(new, old, SERVED)
        except InvalidRequest:
            continue
        worse = difference.worse(MAX_DROP)
        dropped = difference.overall.mean < -MAX_DROP and difference.overall.high < 0
        return {
            "baseline": old.bank.version,
            "arm": SERVED,
            "passed": not (worse or dropped),
            "worse": worse,
            "better": difference.better,
            "mean": difference.overall.model_dump(),
            "tasks": {task: interval.model_dump() for task, interval in difference.tasks.items()},
        }
    return None
