"""Drains this node before its pod ends: Serve starts its replicas elsewhere and lets their requests finish.

    python -m deployments.fleet.drain --seconds 570
    python -m deployments.fleet.drain --head --seconds 570

The preStop hooks of the pods (k8s/base/rayservice.yaml). A worker's returns when no replica or proxy is left here,
after `seconds` at the latest, and earlier if the cluster itself is gone. A head's returns at once if the head alone
ends. If its cluster ends, so that all workers drain together, no replica can move: it removes the applications, which
lets requests finish without starting replacements, and stays until the last worker has left. A drain cannot be undone,
so outside a pod of KubeRay neither does anything: there, any cluster on the machine might be the one that responds.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SERVING = (b"ray::ServeReplica:", b"ray::ProxyActor", b"ray::HAProxyManager")
"""How Ray titles the processes of replicas and proxies. A proxy may hold streams of replicas on other nodes."""

POD_VARIABLES = ("RAY_ADDRESS", "RAY_CLUSTER_NAME", "RAY_CLOUD_INSTANCE_ID")
"""Variables that KubeRay sets in every Ray container; nothing else sets all of them."""

POLL_S = 1.0
SETTLE_S = 5.0
"""Serve looks for draining nodes about every second; after this time it places no new replicas on an empty node."""

GONE_S = 120.0
"""A replaced head is back within this time; one silent for longer belongs to a deleted cluster."""

TOGETHER_S = 30.0
"""Pods that are deleted together have asked for their drain within this time: each joins Ray first."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Drain Serve replicas from this Ray node.")
    parser.add_argument("--seconds", type=int, required=True, help="Remaining lifetime of the pod.")
    parser.add_argument("--head", action="store_true", help="This pod is the head.")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    missing = [name for name in POD_VARIABLES if not os.environ.get(name)]
    if missing:
        sys.exit(f"this is not a pod of a Ray cluster ({', '.join(missing)} not set); nothing was drained")
    address = os.environ["RAY_ADDRESS"]
    deadline = time.monotonic() + seconds
    try:
        if arguments.head:
            end_with_cluster(address, deadline=deadline)
            return
        ask_for_drain(address, seconds)
    except Exception as error:  # whatever Ray raises: the hook must not hold up a pod that is not draining
        print(f"this node was not drained: {error}", file=sys.stderr)
        return
    time.sleep(SETTLE_S)
    if not wait_until_empty(serving, lambda: answers(address), deadline=deadline):
        print("some replicas or proxies are still running; they end with the pod", file=sys.stderr)


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """This process as a part of the cluster at `address`: its runtime context."""
    import ray

    ray.init(address=address, namespace="serve", log_to_driver=False, configure_logging=False)
    try:
        yield ray.get_runtime_context()
    finally:
        ray.shutdown()


def ask_for_drain(address: str, seconds: int) -> None:
    """Tell the cluster at `address` that this node goes away in `seconds`; it then places nothing new here."""
    with joined(address) as context:
        drain_node(context.gcs_address, context.get_node_id(), seconds)


def drain_node(gcs_address: str, node: str, seconds: float) -> None:
    """Raises RuntimeError if Ray refuses."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    accepted, rejection = ray._raylet.GcsClient(address=gcs_address).drain_node(
        node,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # the other reason is refused while a node is busy
        "the pod is about to end",
        int((time.time() + seconds) * 1000),
    )
    if not accepted:
        raise RuntimeError(rejection)


def end_with_cluster(address: str, *, deadline: float) -> None:
    """Stay while the workers of a cluster that ends finish their requests. A head that ends alone does not wait."""
    with joined(address) as context:
        if not all_leave(context.gcs_address):
            return
        remove_applications()
        while workers() and time.monotonic() < deadline:
            time.sleep(POLL_S)


def all_leave(gcs_address: str) -> bool:
    """Whether all workers of the cluster are draining, or soon will be; False without workers."""
    import ray

    client = ray._raylet.GcsClient(address=gcs_address)
    until = time.monotonic() + TOGETHER_S
    while left := workers():
        if left <= set(client.get_draining_nodes()):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return False


def workers() -> set[str]:
    """Ids of the nodes that live, but for the head."""
    import ray

    return {
        node["NodeID"] for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]
    }


def remove_applications() -> None:
    """Lets the requests of all applications finish; their replicas then end, and are not replaced."""
    from ray import serve

    for name in serve.status().applications:
        serve.delete(name, _blocking=False)


def wait_until_empty(left: Callable[[], object], cluster_answers: Callable[[], bool], *, deadline: float) -> bool:
    """Wait; True if nothing is left before `deadline` (time.monotonic) and before the cluster is gone."""
    last_answer = time.monotonic()
    while left():
        now = time.monotonic()
        last_answer = now if cluster_answers() else last_answer
        if now > deadline or now - last_answer > GONE_S:
            return False
        time.sleep(POLL_S)
    return True


def serving() -> set[int]:
    """Ids of the processes in this pod that serve requests."""
    pids = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if command.read_bytes().startswith(SERVING):
                pids.add(int(command.parent.name))
    return pids


def answers(address: str) -> bool:
    """Whether the head's port is open. `address` is host:port."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=POLL_S):
        return True
    return False


if __name__ == "__main__":
    main()
