"""The backbone's request router, on stand-ins for what Serve hands it. What it decides is the library's business."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from deployments.fleet.affinity import AffinityRouter, weights_of
from deployments.links.parts import Listening
from dlp_core.engine.request import Sampling
from dlp_core.generation.messages import GenerationRequest
from dlp_core.mix import EMPTY_MIX, Mix

MIX = Mix.of({"sql": 0.8, "cron": 0.2})


def replica(name: str, *resident: str) -> Any:
    stats = {"resident": list(resident)} if resident else {}
    return SimpleNamespace(
        replica_id=ReplicaID(name, DeploymentID(name="FusedBackbone")), routing_stats=stats, max_ongoing_requests=16
    )


def pending(mix: Mix = MIX, request_id: str = "1") -> Any:
    return SimpleNamespace(
        args=[GenerationRequest(request_id, "bank", mix, "text", Sampling())],
        metadata=SimpleNamespace(internal_request_id=request_id),
        routing_context=SimpleNamespace(should_backoff=False),
    )


@pytest.fixture
def router() -> AffinityRouter:
    made = AffinityRouter.__new__(AffinityRouter)
    made.initialize_state()
    made._replica_queue_len_cache = ReplicaQueueLengthCache()
    made._pending_requests_by_id = {}
    return made


def ranked(router: AffinityRouter, request: Any, *replicas: Any) -> list[str]:
    ranks = asyncio.run(router.choose_replicas(list(replicas), request))
    assert all(len(rank) == 1 for rank in ranks)
    return [one.replica_id.unique_id for (one,) in ranks]


def test_the_holder_comes_first_and_nobody_is_left_out(router: AffinityRouter) -> None:
    request = pending()
    assert ranked(router, request, replica("a"), replica("b", "cron"), replica("c", "sql")) == ["c", "b", "a"]
    assert request.routing_context.should_backoff, "without it a full cluster is asked in a tight loop"


def test_a_busy_holder_is_left(router: AffinityRouter) -> None:
    busy, idle = replica("busy", "sql", "cron"), replica("idle")
    router._replica_queue_len_cache.update(busy.replica_id, 12)
    assert ranked(router, pending(), busy, idle) == ["idle", "busy"]


def test_what_was_sent_to_a_replica_counts_before_it_says_so(router: AffinityRouter) -> None:
    one, other = replica("one"), replica("other")
    last = ranked(router, pending(), one, other)[1]
    target = one if last == "one" else other
    router.on_request_routed(pending(), target.replica_id, None)
    assert ranked(router, pending(), one, other)[0] == last


def test_it_is_forgotten_with_its_replica(router: AffinityRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = replica("one"), replica("other")
    first, last = ranked(router, pending(), one, other)
    target = one if last == "one" else other
    router.on_request_routed(pending(), target.replica_id, None)
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    assert ranked(router, pending(), one, other) == [first, last]


def test_calls_that_share_an_id_can_all_be_fulfilled(router: AffinityRouter) -> None:
    """The n choices of one HTTP request: Serve finds the call to fulfil by this id."""
    first, second = pending(), pending()
    for call in (first, second):
        ranked(router, call, replica("a"))
        assert router._pending_requests_by_id["1"] is call


def listening(replica: str) -> Any:
    call = pending()
    call.args = [Listening(replica, "ingress")]
    return call


def test_a_call_that_listens_goes_to_the_replica_it_names_however_busy(router: AffinityRouter) -> None:
    busy, idle = replica("busy"), replica("idle", "sql", "cron")
    router._replica_queue_len_cache.update(busy.replica_id, 15)
    call = listening("busy")
    assert ranked(router, call, idle, busy) == ["busy"]
    assert call.routing_context.should_backoff


def test_one_that_listens_to_a_replica_that_is_gone_goes_to_another_which_ends_it(router: AffinityRouter) -> None:
    assert sorted(ranked(router, listening("gone"), replica("a"), replica("b"))) == ["a", "b"]


def test_calls_without_a_mix_go_to_the_least_busy(router: AffinityRouter) -> None:
    assert weights_of(SimpleNamespace(args=["version"])) == weights_of(SimpleNamespace(args=[])) == {}
    assert weights_of(pending(EMPTY_MIX)) == {}
    busy, idle = replica("busy", "sql"), replica("idle")
    router._replica_queue_len_cache.update(busy.replica_id, 2)
    assert ranked(router, pending(EMPTY_MIX), busy, idle)[0] == "idle"
    assert asyncio.run(router.choose_replicas([busy, idle], None)) == [[busy, idle]]
