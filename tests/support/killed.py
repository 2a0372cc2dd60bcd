"""Kills a publish, a rollback, a canary, a pin and a collection at every step they take, and looks at what is left.

    python -m tests.support.killed FOLDER STORE_URI STRIDE

A process is forked for each step, or for one of STRIDE, and killed with SIGKILL there: before and after each write and
delete of the store, and, in a folder, at each fsync, where an object is written but not yet in its place. After each
kill the bank that served before must serve, every bank that is listed must be whole, and the same command must go
through. Prints how many steps there were.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from dlp_core.bank import pointer
from dlp_core.bank.canary import promote, start_canary
from dlp_core.bank.publish import publish, rollback, verify
from dlp_core.bank.reading import current, list_versions
from dlp_core.bank.retention import collect, pin
from dlp_core.store.memory import MemoryStore
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import ADAPTERS, write_bank

MUTATIONS = ("put", "delete")


class Countdown:
    """Kills this process at step `left`."""

    def __init__(self, left: int) -> None:
        self._left = left

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """A store whose process dies at a step."""

    def __init__(self, store: AdapterStore, countdown: Countdown) -> None:
        self._store = store
        self._countdown = countdown

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._store, method)
        if method not in MUTATIONS:
            return target

        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown.step()
            result = target(*args, **kwargs)
            self._countdown.step()
            return result

        return call


Work = Callable[[AdapterStore], object]

THREADED = ("gs://", "az://")
"""Stores whose clients have threads."""


def in_a_fork(work: Callable[[], object], *, seconds: float = 60) -> bool:
    """Does `work` in a process of its own; whether that was killed. Raises AssertionError if it failed otherwise, or
    takes longer; the process has printed why."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode}"
    return process.exitcode != 0


def killed_at(step: int, uri: str, work: Work) -> bool:
    """Whether a process that does `work` was killed at `step`; False if it ended before."""

    def child() -> None:
        countdown = Countdown(step)
        sync = os.fsync

        def counted(descriptor: int) -> None:
            countdown.step()
            sync(descriptor)

        os.fsync = counted
        work(Mortal(open_store(uri), countdown))

    return in_a_fork(child)


def every_step(
    uri: str, prepare: Callable[[AdapterStore], object], work: Work, done: Callable[[Any], bool], stride: int
) -> int:
    """Kills `work` at each of its steps, or at one of `stride`, each time in a new place where `prepare` was done; how
    many steps there are, rounded up."""
    prepared = MemoryStore(work.__name__)
    prepare(prepared)
    before = current(prepared)[0].version

    def fill(place: str) -> None:
        store = open_store(place)
        for info in prepared.list():
            store.put(info.key, prepared.get(info.key).data)

    def check(place: str) -> None:
        store = open_store(place)
        after = current(store)[0].version
        assert after == before or done(store), f"{place}: {after} serves"
        for bank in list_versions(store):
            problems = verify(store, bank.version).problems
            assert not problems, f"{place}: {bank.version}: {problems}"
        work(store)
        assert done(store), f"{place}: {work.__name__} does not end"
        assert not verify(store).problems

    # A client with threads does not survive the fork that is to be killed; others need not be made anew each time.
    between: Callable[[Callable[[], object]], object] = in_a_fork if uri.startswith(THREADED) else lambda work: work()
    step = 0
    while True:
        place = f"{uri.rstrip('/')}/{work.__name__}-{step}/"
        between(partial(fill, place))
        killed = killed_at(step, place, work)
        between(partial(check, place))
        if not killed:
            return step
        step += stride


def main(folder: Path, uri: str, stride: int) -> None:
    pointer.CLAIM = timedelta(0)  # nobody waits for a dead collector here
    open_store(uri)  # imports what forks would have to import, each of them
    old, new = (write_bank(folder / name, ADAPTERS[:2], seed=seed) for seed, name in enumerate(("old", "new")))
    versions = [publish(open_store(f"memory://{name}"), path).version for name, path in (("a", old), ("b", new))]

    def publish_new(store: AdapterStore) -> None:
        publish(store, new)

    def try_new(store: AdapterStore) -> None:
        if current(store)[0].version != versions[1]:
            publish(store, new, stage=True)
            start_canary(store, versions[1])
            promote(store)

    def roll_back(store: AdapterStore) -> None:
        rollback(store, versions[0])

    def pin_old(store: AdapterStore) -> None:
        pin(store, versions[0])

    def collect_all(store: AdapterStore) -> None:
        collect(store, keep=0)

    def both(store: AdapterStore) -> None:
        publish(store, old)
        publish(store, new)

    def three(store: AdapterStore) -> None:
        for seed in (7, 8):
            publish(store, write_bank(folder / f"old{seed}", ADAPTERS[:1], seed=seed, router=False))
        both(store)

    def serves(version: str) -> Callable[[AdapterStore], bool]:
        return lambda store: current(store)[0].version == version

    kills = every_step(uri, lambda store: publish(store, old), publish_new, serves(versions[1]), stride)
    kills += every_step(uri, lambda store: publish(store, old), try_new, serves(versions[1]), stride)
    kills += every_step(uri, both, roll_back, serves(versions[0]), stride)
    kills += every_step(uri, both, pin_old, lambda store: current(store)[0].pinned == (versions[0],), stride)
    kills += every_step(uri, three, collect_all, lambda store: not collect(store, keep=0, dry_run=True).keys, stride)
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
