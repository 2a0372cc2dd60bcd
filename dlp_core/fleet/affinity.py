"""Which replica should run a mix: one that holds its adapters already, unless it is much busier than the others.

    score = weight of the mix that is resident - QUEUE_PENALTY * (running - least running) / capacity

A replica whose lead in running requests is above IMBALANCE of its capacity comes after all that are below: overload
ignores affinity, so a hot adapter spreads over as many replicas as its traffic needs. Equal scores, above all of mixes
that nobody holds, are ordered by rendezvous hashing of the heaviest adapter (Thaler and Ravishankar 1998): all who ask
agree without talking to each other, and a replica that comes or goes moves only what belongs to it.
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
    """What is known of one replica: adapters by name, requests it runs, and how many it takes."""

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
    """All replicas, best first. `weights` maps the adapters of a mix to their weights; an empty mix fits anywhere.

    The order of `replicas` does not matter. Raises ValueError for a capacity below 1.
    """
    if any(replica.capacity < 1 for replica in replicas):
        raise ValueError("a replica takes at least one request")
    least = min((replica.running for replica in replicas), default=0)
    heaviest = max(weights, key=lambda name: (abs(weights[name]), name), default="")
    total = sum(abs(weight) for weight in weights.values()) or 1.0

    def key(replica: Replica) -> tuple[bool, bool, float, int]:
        lead = (replica.running - least) / replica.capacity
        held = sum(abs(weight) for name, weight in weights.items() if name in replica.resident) / total
        score = held - queue_penalty * lead
        full = replica.running >= replica.capacity
        return full, lead > imbalance, -round(score, 6), -rendezvous(heaviest, replica.id)

    return sorted(replicas, key=key)


def rendezvous(adapter: str, replica: str) -> int:
    """How much a replica wants an adapter, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{adapter}\0{replica}".encode(), digest_size=8).digest())
