"""The Serve request router of the backbone: ranks replicas for a request's mix by dlp_core/fleet/affinity.py.

A replica's resident adapters come from its `record_routing_stats`, about a second old; adapters of requests sent since
are assumed to become resident. Ray pickles this class by value: no locks, no clients, no state outside the instance.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from dlp_core.fleet.affinity import IMBALANCE, QUEUE_PENALTY, Replica, rank

RESIDENT = "resident"
"""Key of the routing stats: sorted names of the adapters in a replica's slots."""

ASSUMED_S = 5.0
"""How long an adapter counts as resident after a request for it, without a report from the replica."""


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Ranks all replicas for each request. Keyword arguments: `queue_penalty`, `imbalance`."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._queue_penalty = float(kwargs.get("queue_penalty", QUEUE_PENALTY))
        self._imbalance = float(kwargs.get("imbalance", IMBALANCE))
        self._assumed: dict[ReplicaID, dict[str, float]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        # The calls of one HTTP request (its n choices) share an internal id, by which Serve finds the call to fulfil.
        self._pending_requests_by_id[pending_request.metadata.internal_request_id] = pending_request
        if named := [r for r in candidate_replicas if r.replica_id.unique_id == replica_named_by(pending_request)]:
            return [named]
        views = {replica.replica_id.unique_id: self._view(replica) for replica in candidate_replicas}
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = rank(
            weights_of(pending_request),
            list(views.values()),
            queue_penalty=self._queue_penalty,
            imbalance=self._imbalance,
        )
        return [[by_id[view.id]] for view in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        expires = time.monotonic() + ASSUMED_S
        self._assumed.setdefault(replica_id, {}).update(dict.fromkeys(weights_of(pending_request), expires))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        present = {replica.replica_id for replica in replicas}
        self._assumed = {replica: names for replica, names in self._assumed.items() if replica in present}

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._assumed.pop(replica_id, None)

    def _view(self, replica: RunningReplica) -> Replica:
        now = time.monotonic()
        assumed = self._assumed.get(replica.replica_id, {})
        for name in [name for name, expires in assumed.items() if expires < now]:
            del assumed[name]
        return Replica(
            id=replica.replica_id.unique_id,
            resident=frozenset(replica.routing_stats.get(RESIDENT, ())) | assumed.keys(),
            running=self.replica_queue_len_cache.get(replica.replica_id) or 0,
            capacity=replica.max_ongoing_requests,
        )


def replica_named_by(pending_request: PendingRequest) -> str | None:
    """The id of the replica that the call's Listening is for; None for other calls."""
    return getattr(pending_request.args[0], "replica", None) if pending_request.args else None


def weights_of(pending_request: PendingRequest) -> dict[str, float]:
    """Adapter weights of the call's GenerationRequest. Empty for calls without one, such as `prepare`."""
    mix = getattr(pending_request.args[0], "mix", None) if pending_request.args else None
    return {} if mix is None else {part.name: part.weight for part in mix.adapters}
