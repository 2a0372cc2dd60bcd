"""Which replica should run a mix: one that already holds its adapters, unless it is much busier than the others.

    score = resident share of the mix's weight - QUEUE_PENALTY * (running - min running) / capacity

A replica whose lead in running requests exceeds IMBALANCE of its capacity ranks after all below it: overload overrides
affinity, so a hot adapter spreads over as many replicas as its traffic needs. Ties, most of all between replicas that
hold nothing of a mix, are broken by rendezvous hashing of its heaviest adapter (Thaler and Ravishankar 1998): all
callers agree without coordination, and adding or removing a replica moves only the adapters assigned to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

QUEUE_PENALTY = 0.5
IMBALANCE = 0.5


@dataclass(frozen=True, slots=True)
class Replica:
    """The state of one replica: its resident adapters by name, its running requests, and how many it can run."""

    id: str
    resident: AbstractSet[str]
    running: int
    capacity: int


def rank(
    weights: Mapping[str, float],
    replicas: Sequence[Replica],
    *,
    queue_penalty: float = QUEUE_PENALTY,
    imbalance: float = IMBALANCE,
) -> list[Replica]:
    """Rank all replicas, best first. `weights` maps a mix's adapters to their weights; an empty mix fits anywhere.

    The order of `replicas` does not matter. Raises ValueError for a capacity below 1.
    """
    if any(replica.capacity < 1 for replica in replicas):
        raise ValueError("a replica's capacity must be at least one request")
    min_running = min((replica.running for replica in replicas), default=0)
    heaviest = max(weights, key=lambda name: (abs(weights[name]), name), default="")
    total = sum(abs(weight) for weight in weights.values()) or 1.0

    def key(replica: Replica) -> tuple[bool, bool, float, int]:
        lead = (replica.running - min_running) / replica.capacity
        resident_share = sum(abs(weight) for name, weight in weights.items() if name in replica.resident) / total
        score = resident_share - queue_penalty * lead
        full = replica.running >= replica.capacity
        return full, lead > imbalance, -round(score, 6), -rendezvous(heaviest, replica.id)

    return sorted(replicas, key=key)


def rendezvous(adapter: str, replica: str) -> int:
    """The rendezvous hash of an adapter and a replica, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{adapter}\0{replica}".encode(), digest_size=8).digest())
