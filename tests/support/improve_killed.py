"""Kills a run of improvement before and after each write to the store, and takes it up again each time.

    python -m tests.support.improve_killed FOLDER

Prints, as JSON, what an undisturbed run came to, what the killed one came to, and how many kills there were. Whatever
computes is forked, so that no fork inherits threads.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlp_core.bank.reading import current
from dlp_core.improve import run as runs
from dlp_core.improve.loop import Demand, turn, until_waiting
from dlp_core.improve.rows import read_rows
from dlp_core.improve.steps import Tools
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.train import train_router
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.improving import base_rows, give_rows, other_words, publish_first
from tests.support.killed import Countdown, Mortal, in_a_fork
from tests.support.router_rows import QUICK
from tests.support.waiting import HANG_S

TINY = replace(QUICK, pieces=8, net=NetSettings(epochs=1, min_steps=20, batch=48, widths=(16,)))
"""It learns little, which the gate here lets pass, and is trained again after each kill."""


def worker(store: AdapterStore, folder: Path) -> Tools:
    return Tools(store, folder, settings=TINY, max_drop=100.0)


def demand() -> Demand:
    return Demand(base_rows(), 20)


def prepare(folder: Path) -> None:
    prepared = open_store(str(folder / "whole"))
    publish_first(prepared, folder / "bank", train_router(base_rows(), TINY)[0])
    give_rows(prepared, other_words(24, seed=5))
    killed = open_store(str(folder / "killed"))
    for info in prepared.list():
        killed.put(info.key, prepared.get(info.key).data)
    for _ in until_waiting(worker(prepared, folder / "whole-work"), demand()):
        pass


def killed_at(step: int, folder: Path) -> bool:
    """Whether a worker that takes one turn was killed at `step`."""

    def work() -> None:
        store: Any = Mortal(open_store(str(folder / "killed")), Countdown(step))
        turn(worker(store, folder / "killed-work"), demand())

    return in_a_fork(work, seconds=HANG_S)


def state(store: AdapterStore) -> str | None:
    found = runs.latest(store)
    return None if found is None else found[0].state


def result(folder: Path) -> dict[str, Any]:
    """What a run came to, but for times and the trial's id."""
    store = open_store(str(folder))
    found = runs.latest(store)
    assert found is not None
    run, pointer = found[0], current(store)[0]
    assert pointer.canary is not None
    assert run.trained is not None
    assert pointer.canary.id == run.canary
    return {
        "run": run.model_dump(mode="json", exclude={"began", "changed", "canary", "trained"}),
        "trained": run.trained.model_dump(mode="json", exclude={"seconds"}),
        "rows": [row.model_dump() for row in read_rows(store, run)],
        "canary": pointer.canary.version,
        "stored": sorted(info.key for info in store.list()),
    }


def main(folder: Path) -> None:
    assert not in_a_fork(lambda: prepare(folder), seconds=5 * HANG_S)
    store = open_store(str(folder / "killed"))
    kills = step = 0
    while (before := state(store)) != "canary":
        killed = killed_at(step, folder)
        kills += killed
        step = step + 1 if killed and state(store) == before else 0
    print(json.dumps({"whole": result(folder / "whole"), "killed": result(folder / "killed"), "kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
