"""Empties this node before its pod ends: Serve starts its replicas elsewhere, and lets the requests they have finish.

    python -m deployments.drain --seconds 315

The preStop hook of the worker pods (k8s/base/rayservice.yaml). Returns when no replica is left here, after `seconds`
at the latest, and at once where there is no cluster any more that could take over. A drain cannot be taken back, so
outside a pod that KubeRay made nothing is done: there, any cluster of the machine might be the one that answers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

REPLICA = b"ray::ServeReplica:"
"""How Ray titles the process of a replica."""

POD_VARIABLES = ("RAY_ADDRESS", "RAY_CLUSTER_NAME", "RAY_CLOUD_INSTANCE_ID")
"""What KubeRay sets in every Ray container, and nobody elsewhere sets all of."""

LOOK_S = 1.0
SETTLE_S = 5.0
"""Serve looks for nodes that are drained every second or so; a node without replicas now may get none any more then."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Empty this Ray node of Serve replicas.")
    parser.add_argument("--seconds", type=int, required=True, help="How long the pod may still live.")
    seconds = parser.parse_args().seconds
    missing = [name for name in POD_VARIABLES if not os.environ.get(name)]
    if missing:
        sys.exit(f"this is no pod of a Ray cluster ({', '.join(missing)} not set); no node is drained")
    deadline = time.monotonic() + seconds
    try:
        ask_for_drain(os.environ["RAY_ADDRESS"], seconds)
    except Exception as error:  # whatever Ray raises: the hook must not keep a pod that nobody drains
        print(f"this node is not drained: {error}", file=sys.stderr)
        return
    time.sleep(SETTLE_S)
    if not wait_until_empty(replicas, deadline=deadline):
        print(f"after {seconds} s there are still replicas here; they end with the pod", file=sys.stderr)


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


def wait_until_empty(left: Callable[[], int], *, deadline: float) -> bool:
    """Whether no replica was left before the deadline (of time.monotonic)."""
    while left():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def replicas() -> int:
    """Replica processes in this pod."""
    found = 0
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found += command.read_bytes().startswith(REPLICA)
    return found


if __name__ == "__main__":
    main()
