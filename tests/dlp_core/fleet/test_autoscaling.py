"""How many replicas: properties that hold for any demand. What comes of it over time: test_autoscaling_traces.py."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.fleet.autoscaling import MARGIN, Demand, Targets, backbone_load, router_load, wanted

TARGETS = Targets(requests=16, tokens=0.7, adapters=0.9)
IDLE = Demand(requests=0, tokens=0, adapters=0)
SIGNALS = [field.name for field in fields(Demand)]
LOADS = st.floats(0, 100)
COUNTS = st.integers(0, 100)
DEMANDS = st.builds(Demand, requests=st.floats(0, 64), tokens=st.floats(0, 3), adapters=st.floats(0, 3))
ANY = {"least": 0, "most": 1000}


@given(LOADS, COUNTS, st.booleans(), COUNTS, COUNTS)
def test_never_outside_the_bounds(load: float, present: int, certain: bool, one: int, other: int) -> None:
    least, most = sorted((one, other))
    assert least <= wanted(load, present, least=least, most=most, certain=certain) <= most


@given(LOADS, LOADS, COUNTS)
def test_more_load_never_means_fewer(one: float, other: float, present: int) -> None:
    less, more = sorted((one, other))
    assert wanted(less, present, **ANY) <= wanted(more, present, **ANY)


@given(LOADS, COUNTS)
def test_constant_load_settles_without_turning_back(load: float, present: int) -> None:
    counts = [present]
    while (after := wanted(load, counts[-1], **ANY)) != counts[-1]:
        counts.append(after)
        assert len(counts) < 20, "halving a hundred takes seven steps"
    assert counts in (sorted(counts), sorted(counts, reverse=True))
    assert counts[-1] >= round(load, 6), "what is left can do the work"


@given(st.floats(0.01, 100), COUNTS, st.floats(0, MARGIN))
def test_after_going_down_load_may_rise_by_the_margin(load: float, present: int, rise: float) -> None:
    after = wanted(load, present, **ANY)
    if after < present:
        assert wanted(load / (1 - rise), after, **ANY) <= after


@given(LOADS, st.integers(2, 100))
def test_at_most_half_go_at_once(load: float, present: int) -> None:
    assert wanted(load, present, **ANY) >= present / 2


@given(LOADS, COUNTS)
def test_none_goes_while_a_replica_has_not_reported(load: float, present: int) -> None:
    unsure = wanted(load, present, certain=False, **ANY)
    assert unsure == max(present, wanted(load, present, **ANY))


def test_none_are_left_only_without_any_load() -> None:
    assert wanted(0.0, 1, **ANY) == wanted(0.0, 0, **ANY) == 0
    assert wanted(0.001, 1, **ANY) == wanted(0.001, 0, **ANY) == 1
    assert wanted(0.0, 1, least=1, most=4) == 1


@pytest.mark.parametrize(
    ("load", "present", "expected"),
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
def test_the_two_lines(load: float, present: int, expected: int) -> None:
    assert wanted(load, present, **ANY) == expected


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
    """Or the number that follows from it would follow its own changes."""
    part = Demand(one.requests / count, one.tokens / count, one.adapters / count)
    assert backbone_load([part] * count, 0, TARGETS) == pytest.approx(backbone_load([one], 0, TARGETS))


@pytest.mark.parametrize(
    "demand", [Demand(16, 0, 0), Demand(0, 0.7, 0), Demand(0, 0, 0.9), Demand(16, 0.7, 0.9)], ids=str
)
def test_each_signal_alone_fills_a_replica(demand: Demand) -> None:
    assert backbone_load([demand, IDLE], 0, TARGETS) == pytest.approx(1)


def test_requests_that_no_replica_took_are_load() -> None:
    assert backbone_load([Demand(16, 0.1, 0.1)], 8, TARGETS) == 1.5
    assert backbone_load([], 8, TARGETS) == 0.5


def test_the_router_pool_is_as_large_as_its_requests_or_its_work_need() -> None:
    assert router_load([0.3, 0.3], 0, target_busy=0.6, target_requests=32) == 1
    assert router_load([0.3, 0.3], 64, target_busy=0.6, target_requests=32) == 2
    assert router_load([], 0, target_busy=0.6, target_requests=32) == 0
