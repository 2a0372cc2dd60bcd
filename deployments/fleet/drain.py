"""Drains this node before its pod ends: Serve starts its replicas elsewhere and lets their requests finish.

    python -m deployments.fleet.drain --seconds 570

The preStop hook of the worker pods (k8s/base/rayservice.yaml). Returns when no replica or proxy is left here,
after `seconds` at the latest, and earlier if the cluster itself is gone. A drain cannot be undone, so outside a pod of
KubeRay it does nothing: there, any cluster on the machine might be the one that responds.
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
"""Variables that KubeRay sets in every Ray container; nothing else sets all of them."""

POLL_S = 1.0
SETTLE_S = 5.0
"""Serve looks for draining nodes about every second; after this time it places no new replicas on an empty node."""

GONE_S = 120.0
"""A replaced head is back within this time; one silent for longer belongs to a deleted cluster."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Drain Serve replicas from this Ray node.")
    parser.add_argument("--seconds", type=int, required=True, help="Remaining lifetime of the pod.")
    seconds = parser.parse_args().seconds
    missing = [name for name in POD_VARIABLES if not os.environ.get(name)]
    if missing:
        sys.exit(f"this is not a pod of a Ray cluster ({', '.join(missing)} not set); nothing was drained")
    address = os.environ["RAY_ADDRESS"]
    deadline = time.monotonic() + seconds
    try:
        ask_for_drain(address, seconds)
    except Exception as error:  # whatever Ray raises: the hook must not hold up a pod that is not draining
        print(f"this node was not drained: {error}", file=sys.stderr)
        return
    time.sleep(SETTLE_S)
    if not wait_until_empty(serving, lambda: answers(address), deadline=deadline):
        print("some replicas or proxies are still running; they end with the pod", file=sys.stderr)


def ask_for_drain(address: str, seconds: int) -> None:
    """Tell the cluster at `address` that this node goes away in `seconds`; it then places nothing new here."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        context = ray.get_runtime_context()
        accepted, rejection = ray._raylet.GcsClient(address=context.gcs_address).drain_node(
            context.get_node_id(),
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # the other reason is refused while a node is busy
            "the pod is about to end",
            int((time.time() + seconds) * 1000),
        )
    finally:
        ray.shutdown()
    if not accepted:
        raise RuntimeError(rejection)


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
