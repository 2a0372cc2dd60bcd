"""What affinity routing adds up to in traffic: the simulation's loads and balance, against chance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.affinity import SMALL, affinity, power_of_two, simulate


@pytest.mark.parametrize("utilisation", [0.3, 0.6])
@pytest.mark.parametrize("seed", [1, 2])
def test_traffic_loads_a_tenth_of_what_chance_would_and_stays_balanced(utilisation: float, seed: int) -> None:
    traffic = replace(SMALL, requests=2500, utilisation=utilisation)
    chance, ours = (simulate(traffic, choose, seed=seed) for choose in (power_of_two, affinity))
    assert ours.loads_per_1000 <= chance.loads_per_1000 / 10
    assert ours.busiest <= 1.3
