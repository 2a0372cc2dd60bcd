"""How many replicas a deployment needs for the demand on its replicas. About counts, not about time.

    load     = sum over replicas of max(signal / its target per replica) + requests queued at callers
    replicas = ceil(load)                            if that is more than the current number
               ceil(load / (1 - MARGIN))             if that is fewer: the remaining replicas need headroom

Every signal is an amount of work, not a delay: the total is the same over however many replicas it is spread, so the
result does not react to its own changes. Between the two lines nothing changes, so load that varies by less than the
margin changes nothing. How long load must last before anything happens is up to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MARGIN = 0.2


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand of all requests at one backbone replica, running and waiting. Filled by the replica."""

    requests: float
    """Requests in the batch, and those that wait for it or for their adapters."""
    tokens: float
    """Cache in use plus the most that waiting requests may use, as a fraction of the cache. Above 1: too little."""
    adapters: float
    """Adapters that these requests use or wait for, divided by the slots. Above 1: some wait until others are done."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The demand that one replica should have; more of any signal is work for another replica."""

    requests: float
    tokens: float
    adapters: float


def backbone_load(replicas: Iterable[Demand], queued: float, targets: Targets) -> float:
    """Load in replicas: each replica's scarcest resource, plus `queued` requests that no replica has taken yet."""
    assigned = sum(
        max(
            replica.requests / targets.requests,
            replica.tokens / targets.tokens,
            replica.adapters / targets.adapters,
        )
        for replica in replicas
    )
    return assigned + queued / targets.requests


def router_load(busy: Iterable[float], requests: float, *, target_busy: float, target_requests: float) -> float:
    """Load in replicas: of computation (`busy` is the fraction of its time that each replica computes) or of requests,
    running and queued, whichever is more."""
    return max(sum(busy) / target_busy, requests / target_requests)


def desired_replicas(
    load: float,
    current: int,
    *,
    min_replicas: int,
    max_replicas: int,
    all_reported: bool = True,
    margin: float = MARGIN,
) -> int:
    """Replicas for `load` when there are `current` now, within the bounds. 0 only if there is no load at all.

    Removes at most half of them at once, or one. Removes none unless `all_reported`: a replica that has not reported
    yet may have any share of the load.
    """
    desired = current
    if (more := _ceil(load)) > current:
        desired = more
    elif all_reported and (fewer := _ceil(load / (1 - margin))) < current:
        desired = max(fewer, current - max(1, current // 2))
    return max(min_replicas, min(max_replicas, desired))


def _ceil(load: float) -> int:
    return math.ceil(round(load, 6))  # rounding errors, as in a sum of thirds, add no replica
