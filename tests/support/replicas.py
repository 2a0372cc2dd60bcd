"""A look, and a hand, into the replicas of an application that runs on this machine's cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from dlp_core.engine.stats import EngineStats
from tests.support.application import replicas_of
from tests.support.waiting import HANG_S, wait_for

ENDLESS = 4000
"""Tokens of a stream that goes on until somebody ends it: with `slow_steps`, longer than any test waits."""


def replicas(deployment: str) -> dict[str, int]:
    """Process ids of those that live, by replica id."""
    return {one["replica_id"]: one["pid"] for one in replicas_of(deployment) if lives(one["pid"])}


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def inside(replica_id: str, function: Callable[[Any], Any]) -> Any:
    """What a function returns that is given the engine of a backbone replica, in its process."""

    def call(replica: Any) -> Any:
        return function(replica._replica_impl._user_callable_wrapper._callable._engine)

    [name] = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if replica_id in one["name"]]
    return ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(call))


def stats() -> list[EngineStats]:
    """Of the backbone replicas that live."""
    found = []
    for replica_id in replicas("FusedBackbone"):
        with suppress(ray.exceptions.RayActorError):  # it has just died
            found.append(inside(replica_id, lambda engine: engine.stats()))
    return found


def accepted() -> int:
    """Requests that the backbone replicas have, running or waiting."""
    return sum(one.running + one.waiting for one in stats())


def wait_until_idle() -> None:
    """Until no backbone replica holds anything for a request."""
    wait_for(
        lambda: all((one.running, one.waiting, one.pinned, one.cache_free) == (0, 0, 0, 1) for one in stats()),
        "idle replicas",
    )


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
