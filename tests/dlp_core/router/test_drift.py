"""The index says when prompts change, stays low while they do not, and forgets after a day."""

from __future__ import annotations

from random import Random

import pytest

from dlp_core.router.drift import ALL, BINS, HOURS, LEAST, DriftWindow, count, stability
from dlp_core.router.routing import Routing


def margins(rng: Random, count: int, *, mean: float = 8.0) -> list[float]:
    return [rng.gauss(mean, 4.0) for _ in range(count)]


def routed(margins: list[float], adapter: str = "sql") -> list[Routing]:
    return [Routing.of({adapter: 0.9, "other": 0.1}, margin=margin) for margin in margins]


@pytest.mark.parametrize("prompts", [LEAST, 1000, 20_000])
def test_chance_alone_stays_below_what_is_worth_a_look(prompts: int) -> None:
    rng = Random(0)
    expected = count(routed(margins(rng, 300)))["sql"]
    drifts = [stability(expected, count(routed(margins(rng, prompts)))["sql"]) for _ in range(200)]
    assert sum(drift > 0.1 for drift in drifts) <= 10
    assert sum(drifts) / len(drifts) < 0.03


def test_prompts_further_from_the_training_are_told() -> None:
    rng = Random(1)
    expected = count(routed(margins(rng, 300)))["sql"]
    drifts = [stability(expected, count(routed(margins(rng, 500, mean=8.0 - by)))["sql"]) for by in (0, 2, 4, 8)]
    assert drifts == sorted(drifts)
    assert drifts[0] < 0.1 < drifts[1]
    assert drifts[2] > 0.25


def test_each_adapter_and_all_of_them() -> None:
    rng = Random(2)
    expected = count(routed(margins(rng, 300)) + routed(margins(rng, 300), "cron"))
    assert {name: sum(bins) for name, bins in expected.items()} == {"sql": 300, "cron": 300, ALL: 600}
    assert all(len(bins) == BINS for bins in expected.values())
    window = DriftWindow(expected)
    for margin in margins(rng, 400):
        window.add("cron", margin, now=0.0)
    for margin in margins(rng, 400, mean=-3.0):
        window.add("sql", margin, now=0.0)
    for _ in range(LEAST):
        window.add("new", 5.0, now=0.0)
    drift = window.drift(now=60.0)
    assert set(drift) == {"sql", "cron", ALL}  # nothing is known of "new"
    assert drift["cron"] < 0.1
    assert drift["sql"] > 1
    assert drift["cron"] < drift[ALL] < drift["sql"]


def test_too_few_prompts_say_nothing_and_yesterday_is_forgotten() -> None:
    rng = Random(3)
    window = DriftWindow(count(routed(margins(rng, 300))))
    for margin in margins(rng, LEAST - 1):
        window.add("sql", margin, now=0.0)
    assert window.drift(now=0.0) == {}
    window.add("sql", 9.0, now=3600.0)
    assert set(window.drift(now=3600.0)) == {"sql", ALL}
    assert window.drift(now=HOURS * 3600.0) == {}
    assert window.drift(now=(HOURS + 1) * 3600.0) == {}
