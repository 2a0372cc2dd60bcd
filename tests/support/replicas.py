"""A hand in the replicas of an application on a cluster: waiting until they are idle, and slowing them down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.measure.replicas import idle, inside, replicas, stats
from tests.support.waiting import HANG_S, wait_for

ENDLESS = 4000
"""Tokens of a stream that goes on until somebody ends it: with `slow_steps`, longer than any test waits."""


def accepted() -> int:
    """Requests that the backbone replicas have, running or waiting."""
    return sum(engine.running + engine.waiting for engine in stats())


def wait_until_idle() -> None:
    wait_for(idle, "idle replicas")


@contextmanager
def slow_steps() -> Iterator[None]:
    """Steps of the backbone replicas take so long that ENDLESS streams outlast whoever waits for their end."""
    seconds = 1.5 * HANG_S / ENDLESS

    def slow(engine: Any) -> None:
        batching = engine._batching
        step = batching._generation_step

        def slowly() -> None:
            time.sleep(seconds)
            step()

        batching._generation_step = slowly

    def restore(engine: Any) -> None:
        del engine._batching._generation_step

    ids = list(replicas("FusedBackbone"))
    for replica_id in ids:
        inside(replica_id, slow)
    try:
        yield
    finally:
        for replica_id in ids:
            inside(replica_id, restore)
