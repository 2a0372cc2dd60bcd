"""The index says when prompts change, stays low while they do not, and forgets after a day."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dlp_core.router import Router
from dlp_core.router.drift import ALL, BINS, HOURS, LEAST, NOVELTY, Counts, DriftWindow, expected, stability
from dlp_core.router.routing import Routing
from tests.support.router_rows import make_rows, trained


def routed(rng: Random, count: int, *, mean: float = 8.0, adapter: str = "sql") -> list[Routing]:
    return [Routing.of({adapter: 0.9, "other": 0.1}, margin=rng.gauss(mean, 4.0)) for _ in range(count)]


def counted(routings: list[Routing]) -> Counts:
    window = DriftWindow({})
    for routing in routings:
        window.add(routing, now=0.0)
    [(_, counts)] = window._hours
    return counts


@pytest.mark.parametrize("prompts", [LEAST, 1000, 20_000])
def test_chance_alone_stays_below_what_is_worth_a_look(prompts: int) -> None:
    rng = Random(0)
    before = counted(routed(rng, 300))["sql"]
    drifts = [stability(before, counted(routed(rng, prompts))["sql"]) for _ in range(200)]
    assert sum(drift > 0.1 for drift in drifts) <= 10
    assert sum(drifts) / len(drifts) < 0.03


def test_prompts_further_from_the_training_are_told() -> None:
    rng = Random(1)
    before = counted(routed(rng, 300))["sql"]
    drifts = [stability(before, counted(routed(rng, 500, mean=8.0 - by))["sql"]) for by in (0, 2, 4, 8)]
    assert drifts == sorted(drifts)
    assert drifts[0] < 0.1 < drifts[1]
    assert drifts[2] > 0.25


def test_each_adapter_and_all_of_them() -> None:
    rng = Random(2)
    before = counted(routed(rng, 300) + routed(rng, 300, adapter="cron"))
    assert {name: sum(bins) for name, bins in before.items()} == {"sql": 300, "cron": 300, ALL: 600}
    assert all(len(bins) == BINS for bins in before.values())
    window = DriftWindow(before)
    new = [Routing.of({"new": 1.0}, margin=5.0)] * LEAST
    for routing in routed(rng, 400, adapter="cron") + routed(rng, 400, mean=-3.0) + new:
        window.add(routing, now=0.0)
    drift = window.drift(now=60.0)
    assert window.prompts == 800 + LEAST
    assert set(drift) == {"sql", "cron", ALL}  # nothing is known of "new"
    assert drift["cron"] < 0.1
    assert drift["sql"] > 1
    assert drift["cron"] < drift[ALL] < drift["sql"]


def test_too_few_prompts_say_nothing_and_yesterday_is_forgotten() -> None:
    rng = Random(3)
    window = DriftWindow(counted(routed(rng, 300)))
    first, *rest = routed(rng, LEAST)
    for routing in rest:
        window.add(routing, now=0.0)
    assert window.drift(now=0.0) == {}
    window.add(first, now=3600.0)
    assert set(window.drift(now=3600.0)) == {"sql", ALL}
    assert window.drift(now=HOURS * 3600.0) == {}
    assert window.drift(now=(HOURS + 1) * 3600.0) == {}


def test_a_trained_router_knows_what_it_expects(tmp_path: Path) -> None:
    trained()[0].save(tmp_path)
    router = Router.load(tmp_path)
    known = expected(router)
    assert set(known) == {*router.labels, ALL}
    assert sum(known[ALL]) == pytest.approx(router.training["held_back"])
    assert sum(sum(known[label]) for label in router.labels) == pytest.approx(router.training["held_back"])
    assert known[ALL][0] / sum(known[ALL]) == pytest.approx(1 - router.training["kept"], abs=0.05)
    same, other = DriftWindow(known), DriftWindow(known)
    for routing in router.route([row.input for row in make_rows(200, seed=17)]):
        same.add(routing, now=0.0)
    for routing in router.route([f"What shall I cook for {n} guests on the lawn?" for n in range(LEAST)]):
        other.add(routing, now=0.0)
    assert same.drift(now=0.0)[ALL] < 0.25
    assert other.drift(now=0.0)[ALL] > 1
    del router.training[NOVELTY]  # as an earlier version wrote it
    assert expected(router) == {}
