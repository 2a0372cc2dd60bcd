"""How many replicas a deployment needs, from what its replicas are asked for. Counts, not time.

    load     = sum over replicas of max(signal / what one replica should have of it) + what waits at callers
    replicas = ceil(load)                            if that is more than there are
               ceil(load / (1 - MARGIN))             if that is fewer: those that stay must have room to spare

Every signal is an amount of work, not a delay: it is the same amount over however many replicas it is spread, so the
number that follows does not follow its own changes. Between the two lines nothing changes, so load that moves by less
than the margin moves nothing. How long load must last before anything happens is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MARGIN = 0.2


@dataclass(frozen=True, slots=True)
class Demand:
    """What the requests at one backbone replica ask for, running and waiting. Filled by the replica."""

    requests: float
    """Requests in the batch, and those that wait for it or for their adapters."""
    tokens: float
    """Share of the cache in use, and of it what the waiting requests may come to use. Above 1: more than there is."""
    adapters: float
    """Adapters these requests use or wait for, over the slots there are. Above 1: some wait until others are done."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What one replica should have of each; more of any is work for another replica."""

    requests: float
    tokens: float
    adapters: float


def backbone_load(replicas: Iterable[Demand], queued: float, targets: Targets) -> float:
    """Replicas' worth of work: what each replica is short of most, and `queued` requests that no replica took yet."""
    held = sum(
        max(
            replica.requests / targets.requests,
            replica.tokens / targets.tokens,
            replica.adapters / targets.adapters,
        )
        for replica in replicas
    )
    return held + queued / targets.requests


def router_load(busy: Iterable[float], requests: float, *, target_busy: float, target_requests: float) -> float:
    """Replicas' worth of work: of computing (`busy`: the share of its time each replica computes) or of requests,
    running and queued, whichever is more."""
    return max(sum(busy) / target_busy, requests / target_requests)


def wanted(load: float, present: int, *, least: int, most: int, certain: bool = True, margin: float = MARGIN) -> int:
    """Replicas for `load` where there are `present` now, from `least` to `most`. 0 only if there is no load at all.

    At most half of them go at once, or one. None goes if the load is not `certain`: a replica that has not reported
    yet may hold any part of it.
    """
    number = present
    if (more := _ceil(load)) > present:
        number = more
    elif certain and (fewer := _ceil(load / (1 - margin))) < present:
        number = max(fewer, present - max(1, present // 2))
    return max(least, min(most, number))


def _ceil(load: float) -> int:
    return math.ceil(round(load, 6))  # a sum of thirds is not one more than it is
