"""What the backbone's policy makes of one report. Over time: test_autoscaling_traces.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.fleet.autoscaling import ADAPTERS, REQUESTS, TOKENS, BackbonePolicy


def report(requests: float) -> dict[str, float]:
    return {REQUESTS: requests, TOKENS: requests / 50, ADAPTERS: 0.0}


def context(reports: list[dict[str, float]], *, running: int, target: int, queued: float = 0.0) -> Any:
    keys = sorted({key for one in reports for key in one})
    found = {key: {f"r{n}": one[key] for n, one in enumerate(reports) if key in one} for key in keys}
    return AutoscalingContext(
        deployment_id=None,
        deployment_name="FusedBackbone",
        app_name="dlp",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=queued,
        total_queued_requests=queued,
        aggregated_metrics=found,
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(target_ongoing_requests=16),
    )


def decided(reports: list[dict[str, float]], *, running: int, target: int, queued: float = 0.0, **kwargs: Any) -> int:
    number, state = BackbonePolicy(**{"tokens": 0.7, "adapters": 0.9} | kwargs)(
        context(reports, running=running, target=target, queued=queued)
    )
    assert state == {}
    return number


def test_a_decision_counts_from_the_target_not_from_what_has_come_up() -> None:
    assert decided([report(40)], running=1, target=3) == 3
    assert decided([report(4)] * 3, running=3, target=1) == 1, "two of these are on their way out"
    assert decided([report(2)], running=1, target=3) == 2


def test_a_replica_without_a_report_keeps_the_target() -> None:
    assert decided([report(1)], running=2, target=2) == 2
    assert decided([report(1)] * 2, running=2, target=2) == 1
    assert decided([report(1), {REQUESTS: 1.0}], running=2, target=2) == 2, "part of a report is none"
    assert decided([], running=1, target=1, queued=40) == 3
    assert decided([], running=0, target=2) == 1


def test_a_decision_is_within_the_bounds_and_the_margin_is_read() -> None:
    assert decided([report(1000)], running=1, target=1) == 4
    assert decided([report(0)], running=1, target=1) == 1
    assert decided([report(9)] * 3, running=3, target=3) == 3
    assert decided([report(9)] * 3, running=3, target=3, margin=0.1) == 2


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"adapters": -1}, {"margin": 1}, {"tokens": math.nan}], ids=str)
def test_settings_without_a_meaning_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        BackbonePolicy(**{"tokens": 0.7, "adapters": 0.9} | bad)
