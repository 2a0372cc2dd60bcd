"""Serve's autoscaler over simulated time: its own averaging, delays and bounds around a policy, simulated replicas.

A trace gives the total load of all requests. It spreads evenly over the replicas that are up; the excess queues at the
callers. A replica comes up START_S seconds after it was requested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import autoscaling_state
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)

START_S = 20.0
CAPACITY = 64
"""Maximum number of requests per replica (max_ongoing_requests)."""

Trace = Callable[[float], dict[str, float]]
"""Time in seconds to the sums of what all replicas report in `record_autoscaling_stats`, including `requests`."""


@dataclass
class Replicas:
    """Replicas of a deployment, second by second: Serve's target, and the number that was up."""

    target: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """Number of times the target reversed its direction."""
        increases = [after > before for before, after in pairwise(self.target) if after != before]
        return sum(previous != current for previous, current in pairwise(increases))

    def first(self, number: int) -> float:
        """The second at which the target first was `number`; infinity if it never was."""
        return self.target.index(number) if number in self.target else math.inf


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    monotonic = time


@contextmanager
def simulated_time() -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.serve._private.autoscaling_state.time", clock)
        patch.setattr("ray.serve.autoscaling_policy.time", clock)
        yield clock


def replay(trace: Trace, seconds: float, config: Any, *, start_s: float = START_S) -> Replicas:
    """Run Serve's autoscaler on a trace with the AutoscalingConfig `config`."""
    deployment = DeploymentID(name="deployment", app_name="app")
    replicas = Replicas()
    with simulated_time() as clock:
        serve = autoscaling_state.DeploymentAutoscalingState(deployment)
        info = SimpleNamespace(
            deployment_config=SimpleNamespace(autoscaling_config=config, gang_scheduling_config=None),
            config_changed=lambda other: False,
            target_capacity=None,
            target_capacity_direction=None,
        )
        started, target = clock.now, serve.register(info, config.min_replicas)
        up = [_Replica(ReplicaID(f"r{number}", deployment), started) for number in range(target)]
        queue: list[TimeStampedValue] = []
        for second in range(int(seconds)):
            clock.now = started + second
            load = trace(second)
            ready = [replica for replica in up if replica.ready <= clock.now]
            accepted = min(1.0, CAPACITY * len(ready) / load["requests"]) if load["requests"] else 1.0
            share = {key: accepted * value / max(1, len(ready)) for key, value in load.items()}
            queued = (1 - accepted) * load["requests"]
            queue = [*_recent(queue, clock.now, config), TimeStampedValue(clock.now, queued)]
            serve.update_running_replica_ids([replica.id for replica in ready])
            for replica in ready:
                replica.record(share, clock.now, config)
            if second % config.metrics_interval_s == 0:
                for replica in ready:
                    serve.record_request_metrics_for_replica(
                        ReplicaMetricReport(replica.id, dict(replica.points), clock.now)
                    )
                serve.record_request_metrics_for_handle(_handle_report(deployment, queue, ready, clock.now))
            target = serve.get_decision_num_replicas(target)
            for number in range(len(up), target):
                up.append(_Replica(ReplicaID(f"r{second}-{number}", deployment), clock.now + start_s))
            for stopped in up[target:]:
                serve.on_replica_stopped(stopped.id)
            del up[target:]
            replicas.target.append(target)
            replicas.up.append(len(ready))
    return replicas


@dataclass
class _Replica:
    id: ReplicaID
    ready: float
    points: dict[str, list[TimeStampedValue]] = field(default_factory=dict)

    def record(self, share: dict[str, float], now: float, config: Any) -> None:
        for key, value in share.items():
            self.points[key] = [*_recent(self.points.get(key, []), now, config), TimeStampedValue(now, value)]


def _recent(points: list[TimeStampedValue], now: float, config: Any) -> list[TimeStampedValue]:
    return [point for point in points if point.timestamp > now - config.look_back_period_s]


def _handle_report(
    deployment: DeploymentID, queue: list[TimeStampedValue], ready: list[_Replica], now: float
) -> HandleMetricReport:
    running = {replica.id.to_full_id_str(): replica.points["requests"] for replica in ready}
    return HandleMetricReport(
        deployment_id=deployment,
        handle_id="handle",
        actor_id="actor",
        handle_source=DeploymentHandleSource.REPLICA,
        queued_requests=list(queue),
        metrics={autoscaling_state.RUNNING_REQUESTS_KEY: running},
        timestamp=now,
    )
