"""How many replicas: properties that hold for any demand. Behaviour over time: test_autoscaling_traces.py."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.fleet.autoscaling import MARGIN, Demand, Targets, backbone_load, desired_replicas, router_load

TARGETS = Targets(requests=16, tokens=0.7, adapters=0.9)
IDLE = Demand(requests=0, tokens=0, adapters=0)
SIGNALS = [field.name for field in fields(Demand)]
LOADS = st.floats(0, 100)
COUNTS = st.integers(0, 100)
DEMANDS = st.builds(Demand, requests=st.floats(0, 64), tokens=st.floats(0, 3), adapters=st.floats(0, 3))
ANY = {"min_replicas": 0, "max_replicas": 1000}


@given(LOADS, COUNTS, st.booleans(), COUNTS, COUNTS)
def test_never_outside_the_bounds(load: float, current: int, all_reported: bool, one: int, other: int) -> None:
    low, high = sorted((one, other))
    replicas = desired_replicas(load, current, min_replicas=low, max_replicas=high, all_reported=all_reported)
    assert low <= replicas <= high


@given(LOADS, LOADS, COUNTS)
def test_more_load_never_means_fewer(one: float, other: float, current: int) -> None:
    less, more = sorted((one, other))
    assert desired_replicas(less, current, **ANY) <= desired_replicas(more, current, **ANY)


@given(LOADS, COUNTS)
def test_constant_load_settles_without_oscillating(load: float, current: int) -> None:
    counts = [current]
    while (after := desired_replicas(load, counts[-1], **ANY)) != counts[-1]:
        counts.append(after)
        assert len(counts) < 20, "halving a hundred takes seven steps"
    assert counts in (sorted(counts), sorted(counts, reverse=True))
    assert counts[-1] >= round(load, 6), "the remaining replicas can do the work"


@given(st.floats(0.01, 100), COUNTS, st.floats(0, MARGIN))
def test_after_scaling_down_load_may_rise_by_the_margin(load: float, current: int, rise: float) -> None:
    after = desired_replicas(load, current, **ANY)
    if after < current:
        assert desired_replicas(load / (1 - rise), after, **ANY) <= after


@given(LOADS, st.integers(2, 100))
def test_at_most_half_are_removed_at_once(load: float, current: int) -> None:
    assert desired_replicas(load, current, **ANY) >= current / 2


@given(LOADS, COUNTS)
def test_none_is_removed_while_a_replica_has_not_reported(load: float, current: int) -> None:
    unreported = desired_replicas(load, current, all_reported=False, **ANY)
    assert unreported == max(current, desired_replicas(load, current, **ANY))


def test_no_replicas_only_without_any_load() -> None:
    assert desired_replicas(0.0, 1, **ANY) == desired_replicas(0.0, 0, **ANY) == 0
    assert desired_replicas(0.001, 1, **ANY) == desired_replicas(0.001, 0, **ANY) == 1
    assert desired_replicas(0.0, 1, min_replicas=1, max_replicas=4) == 1


@pytest.mark.parametrize(
    ("load", "current", "expected"),
    [
        (2.4, 1, 3),
        (3.0, 3, 3),
        (3.01, 3, 4),
        (1.7, 3, 3),
        (1.6, 3, 2),
        (0.8, 2, 1),
        (0.81, 2, 2),
        (0.5, 9, 5),
        (3 + 1e-9, 3, 3),
    ],
)
def test_the_two_lines(load: float, current: int, expected: int) -> None:
    assert desired_replicas(load, current, **ANY) == expected


@given(st.lists(DEMANDS, max_size=5), DEMANDS, st.floats(0, 50), st.sampled_from(SIGNALS), st.floats(0, 10))
def test_more_of_any_signal_is_never_less_load(
    others: list[Demand], one: Demand, queued: float, signal: str, extra: float
) -> None:
    before = backbone_load([*others, one], queued, TARGETS)
    grown = replace(one, **{signal: getattr(one, signal) + extra})
    assert backbone_load([*others, grown], queued, TARGETS) >= before
    assert backbone_load([*others, one], queued + extra, TARGETS) >= before


@given(DEMANDS, st.integers(1, 9))
def test_load_is_the_same_over_however_many_replicas_it_is_spread(one: Demand, count: int) -> None:
    """Otherwise the result would react to its own changes."""
    part = Demand(one.requests / count, one.tokens / count, one.adapters / count)
    assert backbone_load([part] * count, 0, TARGETS) == pytest.approx(backbone_load([one], 0, TARGETS))


@pytest.mark.parametrize(
    "demand", [Demand(16, 0, 0), Demand(0, 0.7, 0), Demand(0, 0, 0.9), Demand(16, 0.7, 0.9)], ids=str
)
def test_each_signal_alone_fills_a_replica(demand: Demand) -> None:
    assert backbone_load([demand, IDLE], 0, TARGETS) == pytest.approx(1)


def test_queued_requests_are_load() -> None:
    assert backbone_load([Demand(16, 0.1, 0.1)], 8, TARGETS) == 1.5
    assert backbone_load([], 8, TARGETS) == 0.5


def test_the_router_pool_fits_its_requests_and_its_work() -> None:
    assert router_load([0.3, 0.3], 0, target_busy=0.6, target_requests=32) == 1
    assert router_load([0.3, 0.3], 64, target_busy=0.6, target_requests=32) == 2
    assert router_load([], 0, target_busy=0.6, target_requests=32) == 0
