"""A look into the replicas of an application that runs on this machine's cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from dlp_core.engine.stats import EngineStats


def replicas_of(deployment: str) -> list[dict[str, Any]]:
    """What Serve knows of the running ones: replica_id, node_id, pid. It takes a while to notice that one died."""
    from ray import serve  # noqa: PLC0415 - a second that not everybody who imports this needs

    details = serve.context._get_global_client().get_serve_details()
    replicas = details["applications"]["dlp"]["deployments"].get(deployment, {}).get("replicas", [])
    return [replica for replica in replicas if replica["state"] == "RUNNING"]


def replicas(deployment: str) -> dict[str, int]:
    """Process ids of those that live, by replica id."""
    return {replica["replica_id"]: replica["pid"] for replica in replicas_of(deployment) if lives(replica["pid"])}


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

    return ray.get(_actor(replica_id).__ray_call__.remote(call))


def ongoing(replica_id: str) -> int:
    """The calls that a replica is busy with, as Serve counts them."""
    return int(ray.get(_actor(replica_id).get_num_ongoing_requests.remote()))


def _actor(replica_id: str) -> Any:
    [name] = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if replica_id in actor["name"]]
    return ray.get_actor(name, namespace="serve")


def stats() -> list[EngineStats]:
    """Of the backbone replicas that live."""
    of_engines = []
    for replica_id in replicas("FusedBackbone"):
        with suppress(ray.exceptions.RayActorError):  # it has just died
            of_engines.append(inside(replica_id, lambda engine: engine.stats()))
    return of_engines


def idle() -> bool:
    """Whether no backbone replica holds anything for a request: no place, no adapter, no cache block."""
    return all((engine.running, engine.waiting, engine.pinned, engine.cache_free) == (0, 0, 0, 1) for engine in stats())
