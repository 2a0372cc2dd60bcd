"""Metrics take whatever happens, and the stopwatch times tokens. That Ray exports them: tests/cluster."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve.metrics import Histogram

from deployments.observe import metrics
from deployments.observe.metrics import EngineMetrics, RoutingMetrics, TokenStopwatch
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.generation.messages import Finished
from dlp_core.mix import EMPTY_MIX, Mix, Span
from tests.support.paths import ROOT


def test_metrics_take_every_decision_and_completion() -> None:
    """Ray refuses wrong tags and bounds when a value is recorded, not before."""
    routing, engine = RoutingMetrics(), EngineMetrics()
    options = RoutingOptions("auto", 0.9, 3)
    routing.decided(
        Decision(options, "b", Mix.of({"sql": 1.0}), {"sql": "d"}, "routed", "r", 0.9, 0.1, {}), 0.001, role="serving"
    )
    routing.decided(Decision(options, "b", EMPTY_MIX, {}, "none_of_these", "r", 0.1, 0.9, {}), 0.001, role="canary")
    routing.decided(Decision(options, "b", EMPTY_MIX, {}, "base"), 0.001, role="shadow")
    for tier in ("disk", "host"):
        engine.loaded("sql@1a2b", tier, 0.1)
    engine.loaded("sql@1a2b", "device", 0.1)
    engine.finished(Finished("stop", 5, 0, (Span(0, 5, EMPTY_MIX),)))
    engine.stopwatch().tokens(1)


def test_counts_since_a_writer_began_become_increments(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[str, float, str]] = []

    class Recorder(metrics.Counter):  # type: ignore[misc]
        def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
            super().__init__(name, description, tags)
            self.name = name

        def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            super().inc(value, tags)
            added.append((self.name, value, (tags or {})["kind"]))

    monkeypatch.setattr(metrics, "Counter", Recorder)
    kept = metrics.KeptMetrics()
    kept.state("requests", written=0, dropped=0, waiting=3)
    kept.state("requests", written=3, dropped=0, waiting=0)
    kept.state("requests", written=5, dropped=2, waiting=0)
    kept.state("feedback", written=1, dropped=0, waiting=0)
    assert added == [
        ("dlp_kept_written_total", 3, "requests"),
        ("dlp_kept_written_total", 2, "requests"),
        ("dlp_kept_dropped_total", 2, "requests"),
        ("dlp_kept_written_total", 1, "feedback"),
    ]


def test_every_metric_is_documented() -> None:
    names = re.findall(r'"(dlp_\w+)"', Path(metrics.__file__).read_text())
    page = (ROOT / "docs/observability.md").read_text()
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_stopwatch_times_the_first_token_and_then_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder(Histogram):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
            self.seen.append(value)

    now = 100.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now))
    first, between = Recorder(), Recorder()
    watch = TokenStopwatch(first, between)
    now += 2
    watch.tokens(0)  # an event without tokens is not a token
    now += 1
    watch.tokens(1)
    now += 4
    watch.tokens(4)
    assert (first.seen, between.seen) == ([3.0], [1.0])
