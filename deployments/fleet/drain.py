"""Empties this node before its pod ends: Serve starts its replicas elsewhere, and lets the requests they have finish.

    python -m deployments.fleet.drain --seconds 570

The preStop hook of the worker pods (k8s/base/rayservice.yaml). Returns when neither a replica nor a proxy is left here,
after `seconds` at the latest, and earlier where the cluster itself is gone. A drain cannot be taken back, so outside a
pod that KubeRay made nothing is done: there, any cluster of the machine might be the one that answers.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SERVING = (b"ray::ServeReplica:", b"ray::ProxyActor", b"ray::HAProxyManager")
"""How Ray titles the processes of replicas and proxies. A proxy may hold streams of replicas on other nodes."""

POD_VARIABLES = ("RAY_ADDRESS", "RAY_CLUSTER_NAME", "RAY_CLOUD_INSTANCE_ID")
"""What KubeRay sets in every Ray container, and nobody elsewhere sets all of."""

LOOK_S = 1.0
SETTLE_S = 5.0
"""Serve looks for nodes that are drained every second or so; a node without replicas now may get none any more then."""

GONE_S = 120.0
"""A head that is replaced is back in this time; one that is silent for longer belongs to a cluster that was deleted."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Empty this Ray node of Serve replicas.")
    parser.add_argument("--seconds", type=int, required=True, help="How long the pod may still live.")
    seconds = parser.parse_args().seconds
    missing = [name for name in POD_VARIABLES if not os.environ.get(name)]
    if missing:
        sys.exit(f"this is no pod of a Ray cluster ({', '.join(missing)} not set); no node is drained")
    address = os.environ["RAY_ADDRESS"]
    deadline = time.monotonic() + seconds
    try:
        ask_for_drain(address, seconds)
    except Exception as error:  # whatever Ray raises: the hook must not keep a pod that nobody drains
        print(f"this node is not drained: {error}", file=sys.stderr)
        return
    time.sleep(SETTLE_S)
    if not wait_until_empty(serving, lambda: answers(address), deadline=deadline):
        print("there are still replicas or proxies here; they end with the pod", file=sys.stderr)


def ask_for_drain(address: str, seconds: int) -> None:
    """Tells the cluster at `address` that this node goes away in `seconds`. Nothing new is placed here then."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        context = ray.get_runtime_context()
        accepted, why_not = ray._raylet.GcsClient(address=context.gcs_address).drain_node(
            context.get_node_id(),
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # the other reason is refused while a node is busy
            "the pod is about to end",
            int((time.time() + seconds) * 1000),
        )
    finally:
        ray.shutdown()
    if not accepted:
        raise RuntimeError(why_not)


def wait_until_empty(left: Callable[[], object], cluster_answers: Callable[[], bool], *, deadline: float) -> bool:
    """Whether nothing was left before the deadline (of time.monotonic), or before the cluster was gone."""
    heard = time.monotonic()
    while left():
        now = time.monotonic()
        heard = now if cluster_answers() else heard
        if now > deadline or now - heard > GONE_S:
            return False
        time.sleep(LOOK_S)
    return True


def serving() -> set[int]:
    """Processes in this pod that serve requests, by their ids."""
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if command.read_bytes().startswith(SERVING):
                found.add(int(command.parent.name))
    return found


def answers(address: str) -> bool:
    """Whether the head's port is open. `address` is host:port."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=LOOK_S):
        return True
    return False


if __name__ == "__main__":
    main()
