"""What replicas report to the autoscaler. What it makes of that: fleet/test_autoscaling_policies.py."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest

from deployments.args import AppArgs
from deployments.fleet.autoscaling import ADAPTERS, REQUESTS, TOKENS
from deployments.replicas.backbone import FusedBackbone
from deployments.replicas.router import BusyTime
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.stats import EngineStats

STATS = EngineStats(
    running=3,
    waiting=2,
    resident=("a@1", "b@1"),
    host_adapters=2,
    pinned=3,
    cache_tokens=1024,
    cache_free=0.75,
    shared_tokens=7,
    tokens_running=200,
    tokens_waiting=512,
    adapter_demand=1.5,
    adapter_wait_s=0.2,
)


def test_a_backbone_replica_reports_what_its_requests_ask_for() -> None:
    replica = FusedBackbone.__new__(FusedBackbone)
    replica._engine = SimpleNamespace(stats=lambda: STATS)  # type: ignore[assignment]
    replica._args = AppArgs(bank="b", base_model="m", engine=EngineConfig(cache_tokens=99))  # unlike the engine
    assert replica.record_autoscaling_stats() == {REQUESTS: 5, TOKENS: 0.25 + 0.5, ADAPTERS: 1.5}


def test_a_router_replica_reports_the_share_of_its_time_since_it_was_last_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    busy = BusyTime()
    with busy.measured():
        now += 1
    now += 3
    assert busy.share() == 1 / 4
    now += 2
    assert busy.share() == 0
    with suppress(KeyError), busy.measured():
        now += 2
        raise KeyError
    assert busy.share() == 1
