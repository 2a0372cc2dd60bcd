"""Adapter loads and load balance of affinity routing and of power of two choices, in a discrete-event simulation.

    .venv/bin/python -m benchmarks.affinity

The scoring function is the one used in production (dlp_core/fleet/affinity.py). Arrivals are Poisson. Each request
needs a mix of one to three adapters of one family; families follow Zipf's law. A replica keeps its most recently used
adapters in slots and runs a limited number of requests at once; loading an adapter delays the request that needs it.
Prints one JSON object: loads per 1,000 requests, and the busiest replica's requests divided by the mean.
"""

from __future__ import annotations

import heapq
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from benchmarks.measure.harness import run
from dlp_core.fleet.affinity import Replica, rank

LOAD = 0.07  # duration of a load, relative to a request's mean duration
WARM_UP = 0.1  # share of requests that are not counted

Choose = Callable[[dict[str, float], list[Replica], Random], int]


@dataclass(frozen=True, slots=True)
class Traffic:
    replicas: int
    families: int
    adapters_per_family: int
    slots: int
    capacity: int = 16
    zipf: float = 1.0
    utilisation: float = 0.6
    requests: int = 6000


@dataclass(frozen=True, slots=True)
class Outcome:
    loads_per_1000: float
    busiest: float
    """Requests of the busiest replica divided by the mean."""


SMALL = Traffic(replicas=3, families=20, adapters_per_family=3, slots=24)
LARGE = Traffic(replicas=64, families=250, adapters_per_family=4, slots=24, requests=60_000)


def power_of_two(mix: dict[str, float], replicas: list[Replica], rng: Random) -> int:
    first, second = rng.sample(range(len(replicas)), 2)
    return first if replicas[first].running <= replicas[second].running else second


def affinity(mix: dict[str, float], replicas: list[Replica], rng: Random) -> int:
    return int(rank(mix, replicas)[0].id)


def simulate(traffic: Traffic, choose: Choose, *, seed: int = 0) -> Outcome:
    rng = Random(seed)
    weights = list(accumulate(1 / (number + 1) ** traffic.zipf for number in range(traffic.families)))
    rate = traffic.replicas * traffic.capacity * traffic.utilisation
    slots: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(traffic.replicas)]
    running = [0] * traffic.replicas
    counts = [0] * traffic.replicas
    ends: list[tuple[float, int]] = []
    now, loads, warm_up = 0.0, 0, int(traffic.requests * WARM_UP)
    for number in range(traffic.requests):
        now += rng.expovariate(rate)
        while ends and ends[0][0] <= now:
            running[heapq.heappop(ends)[1]] -= 1
        (family,) = rng.choices(range(traffic.families), cum_weights=weights)
        members = rng.sample(range(traffic.adapters_per_family), rng.randint(1, 3))
        mix = {f"{family}-{member}": rng.uniform(0.1, 1.0) for member in members}
        views = [Replica(str(n), slots[n].keys(), running[n], traffic.capacity) for n in range(traffic.replicas)]
        chosen = choose(mix, views, rng)
        missing = [name for name in mix if name not in slots[chosen]]
        for name in mix:
            slots[chosen][name] = None
            slots[chosen].move_to_end(name)
        while len(slots[chosen]) > traffic.slots:
            slots[chosen].popitem(last=False)
        running[chosen] += 1
        heapq.heappush(ends, (now + rng.uniform(0.5, 1.5) + LOAD * len(missing), chosen))
        if number >= warm_up:
            loads += len(missing)
            counts[chosen] += 1
    counted = traffic.requests - warm_up
    return Outcome(1000 * loads / counted, max(counts) * traffic.replicas / counted)


def main() -> None:
    result = {}
    for name, traffic in (("3 replicas, 60 adapters", SMALL), ("64 replicas, 1,000 adapters", LARGE)):
        outcomes = {choose.__name__: simulate(traffic, choose) for choose in (power_of_two, affinity)}
        result[name] = {
            policy: {"loads_per_1000": round(outcome.loads_per_1000, 1), "busiest": round(outcome.busiest, 2)}
            for policy, outcome in outcomes.items()
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
