"""The policies of serve_config.yaml inside Serve's own autoscaler, over traces: made up, and recorded on a cluster."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from random import Random
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig

from deployments.fleet.autoscaling import ADAPTERS, BUSY, REQUESTS, TOKENS
from tests.support.autoscaler import START_S, Replicas, Trace, replay
from tests.support.paths import ROOT

DEPLOYMENTS = {
    deployment["name"]: deployment
    for deployment in yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["deployments"]
}
HOUR = 3600
AT = 60
"""The second at which load steps."""


def config(name: str, **changes: Any) -> Any:
    return AutoscalingConfig(**DEPLOYMENTS[name]["autoscaling_config"] | changes)


BACKBONE = config("FusedBackbone")
NOTICED_S = BACKBONE.look_back_period_s + BACKBONE.upscale_delay_s + 2 * BACKBONE.metrics_interval_s
"""Within this time a step of load is answered: it must fill the average, be reported, and last for the delay."""


def backbone(requests: float, *, tokens: float = 0.0, adapters: float = 0.0) -> dict[str, float]:
    """What all requests ask for together, each of them for a fiftieth of a cache at least."""
    return {REQUESTS: requests, TOKENS: max(tokens, requests / 50), ADAPTERS: adapters}


def step(low: float, high: float, until: float = 900) -> Trace:
    return lambda t: backbone(high if AT <= t < until else low)


def ramp(t: float) -> dict[str, float]:
    return backbone(60 * max(0, 1 - abs(t - 1200) / 1200))


def bursts(t: float) -> dict[str, float]:
    return backbone(60 if t % 60 < 12 else 6)


def sine(t: float) -> dict[str, float]:
    return backbone(32 - 28 * math.cos(2 * math.pi * t / 1800))


def noise(t: float) -> dict[str, float]:
    """Around the line between two replicas and three, by a fifth."""
    return backbone(32 * Random(int(t)).uniform(0.8, 1.2))


def long_stream(t: float) -> dict[str, float]:
    return backbone(1, tokens=min(0.6, t / HOUR))


def long_prompts(t: float) -> dict[str, float]:
    """A dozen requests that do not fit the cache: most wait."""
    return backbone(12, tokens=1.9) if AT <= t < 900 else backbone(0)


def adapter_storm(t: float) -> dict[str, float]:
    """Eight requests whose mixes have no adapter in common."""
    return backbone(8, adapters=1.5) if AT <= t < 900 else backbone(2, adapters=0.2)


# trace: replicas it needs at its height, most turns of the target within two hours
TRACES: dict[str, tuple[Trace, int, int]] = {
    "step": (step(2, 40), 3, 1),
    "step beyond the bounds": (step(2, 400), 4, 1),
    "ramp": (ramp, 4, 1),
    "bursts": (bursts, 4, 0),
    "sine": (sine, 4, 2 * 4),
    "noise": (noise, 3, 0),
    "long stream": (long_stream, 1, 0),
    "long prompts": (long_prompts, 3, 1),
    "adapter storm": (adapter_storm, 2, 1),
}


@pytest.mark.parametrize(("trace", "height", "turns"), TRACES.values(), ids=TRACES)
def test_traces_get_what_they_need_without_flapping(trace: Trace, height: int, turns: int) -> None:
    found = replay(trace, 2 * HOUR, BACKBONE)
    assert max(found.target) == height
    assert min(found.target) == 1
    assert found.turns <= turns


@pytest.mark.parametrize(("before", "after"), [(40, 3), (64, 4), (400, 4)])
def test_a_step_reaches_its_level_within_the_delay(before: float, after: int) -> None:
    found = replay(step(0, before), HOUR, BACKBONE)
    assert found.first(after) <= AT + NOTICED_S
    assert set(found.target[: AT + int(BACKBONE.upscale_delay_s)]) == {1}, "and none before it has lasted"


def test_replicas_go_one_delay_after_another_and_never_earlier() -> None:
    found = replay(step(2, 40, until=900), HOUR, BACKBONE)
    falls = [second for second in range(1, HOUR) if found.target[second] < found.target[second - 1]]
    assert [found.target[second] for second in falls] == [2, 1]
    assert falls[0] >= 900 + BACKBONE.downscale_delay_s
    assert falls[1] - falls[0] >= BACKBONE.downscale_delay_s


@pytest.mark.parametrize("pause", [30, 120, 280])
def test_a_pause_shorter_than_the_delay_costs_no_replica(pause: float) -> None:
    found = replay(lambda t: backbone(40 if t % (600 + pause) < 600 else 0), 2 * HOUR, BACKBONE)
    assert found.turns == 0


def test_replicas_that_cannot_start_are_not_waited_for_when_load_has_gone() -> None:
    found = replay(step(2, 40), HOUR, BACKBONE, start_s=math.inf)
    assert (max(found.target), max(found.up), found.target[-1]) == (3, 1, 1)


@pytest.mark.parametrize("start_s", [5, START_S, 120])
def test_starting_replicas_change_nothing(start_s: float) -> None:
    found = replay(step(2, 40), HOUR, BACKBONE, start_s=start_s)
    assert (max(found.target), found.turns, found.target[-1]) == (3, 1, 1)


@pytest.mark.slow
def test_a_large_fleet_follows_load_of_a_large_fleet() -> None:
    found = replay(step(10, 1000), 3 * HOUR, config("FusedBackbone", max_replicas=100))
    assert found.first(63) <= AT + NOTICED_S
    assert (max(found.target), found.turns, found.target[-1]) == (63, 1, 1)


# ---------------------------------------------------------------------- recorded by benchmarks/autoscaling.py

RECORDED = json.loads((ROOT / "benchmarks/results/autoscaling.json").read_text())
# trace: replicas it gets by the recorded settings, and by those of serve_config.yaml. The second number of `steady` is
# one too many: its adapter is in one of two slots of two replicas, and counts on both.
HEIGHTS = {"steady": (3, 2), "bursts": (1, 1), "long_prompts": (3, 3), "mixes": (2, 2)}


def recorded(name: str) -> tuple[Trace, list[int], int]:
    """What was asked for, what Serve aimed at then, and for how many seconds."""
    seen = RECORDED["traces"][name]["seen"]
    times = [row["time"] for row in seen]

    def trace(t: float) -> dict[str, float]:
        row = seen[max(0, bisect_right(times, t) - 1)]
        return {REQUESTS: row[REQUESTS] + row["queued"], TOKENS: row[TOKENS], ADAPTERS: row[ADAPTERS]}

    targets = [seen[max(0, bisect_right(times, second) - 1)]["target"] for second in range(times[-1])]
    return trace, targets, times[-1]


def test_every_recorded_kind_of_load_is_replayed() -> None:
    assert set(RECORDED["traces"]) == set(HEIGHTS)
    assert all(set(trace["answers"]) == {"200"} for trace in RECORDED["traces"].values())


@pytest.mark.parametrize("name", HEIGHTS)
def test_a_recorded_trace_goes_the_way_the_cluster_went(name: str) -> None:
    trace, targets, seconds = recorded(name)
    height = HEIGHTS[name][0]
    settings = config("FusedBackbone", **RECORDED["scaling"])
    found = replay(trace, seconds, settings, start_s=8)
    turns = int(height > 1)  # a burst is over before the delay is
    assert (found.target[0], max(found.target), found.turns, found.target[-1]) == (1, height, turns, 1)
    assert found.first(height) <= targets.index(height) + settings.look_back_period_s + settings.upscale_delay_s
    were = Replicas(target=targets)
    assert (max(were.target), were.turns, were.target[-1]) == (height, turns, 1)


@pytest.mark.parametrize("name", HEIGHTS)
def test_a_recorded_trace_by_the_settings_of_production(name: str) -> None:
    trace, _, seconds = recorded(name)
    found = replay(trace, HOUR / 2, BACKBONE)
    assert (max(found.target), found.turns) == (HEIGHTS[name][1], int(HEIGHTS[name][1] > 1))
    assert found.first(HEIGHTS[name][1]) <= seconds - 25, "while the load lasts"
    assert found.target[-1] == 1


# ---------------------------------------------------------------------- the router pool

POOL = config("Router", min_replicas=0)


def router(requests: float, busy: float = 0.0) -> dict[str, float]:
    return {REQUESTS: requests, BUSY: busy}


def test_an_idle_pool_goes_to_zero_and_the_first_request_wakes_it() -> None:
    found = replay(lambda t: router(1, 0.01) if t < 100 or t >= 1000 else router(0), 2000, POOL)
    assert found.target[100 + int(POOL.downscale_delay_s) - 1] == 1
    assert found.target[999] == 0
    assert found.first(1) <= 1, "without a delay"
    assert found.target[1000 + int(POOL.metrics_interval_s)] == 1
    assert set(found.target) == {0, 1}


def test_a_pool_that_is_used_now_and_then_stays() -> None:
    found = replay(lambda t: router(1, 0.01) if t % 120 < 2 else router(0), 2 * HOUR, POOL)
    assert set(found.target[5:]) == {1}


@pytest.mark.parametrize("asked", [router(80, 0.1), router(10, 1.5)], ids=["requests", "work"])
def test_the_pool_grows_by_requests_and_by_work(asked: dict[str, float]) -> None:
    found = replay(lambda t: asked if AT <= t < 900 else router(1, 0.01), HOUR, config("Router"))
    assert found.first(3) <= AT + NOTICED_S
    assert (max(found.target), found.turns, found.target[-1]) == (3, 1, 1)
