"""Average linkage, beside its definition."""

from __future__ import annotations

import numpy as np
import pytest

from dlp_core.improve.clusters import clusters, cohesion


def points(seed: int, count: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_definition(x: np.ndarray, least: float) -> list[list[int]]:
    groups = [[row] for row in range(len(x))]
    while len(groups) > 1:
        best = max(
            (
                (float((x[a] @ x[b].T).mean()), i, j)
                for i, a in enumerate(groups)
                for j, b in enumerate(groups)
                if i < j
            ),
        )
        if best[0] < least:
            break
        _, i, j = best
        groups[i] = sorted(groups[i] + groups.pop(j))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize("least", [-0.5, 0.0, 0.4, 0.9, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_two_groups_most_alike_are_merged_first(seed: int, least: float) -> None:
    x = points(seed, 25)
    assert clusters(x, least=least) == by_definition(x.astype(np.float64), least)


def test_nothing_and_one_row() -> None:
    assert clusters(np.zeros((0, 3), np.float32), least=0.1) == []
    assert clusters(np.ones((1, 1), np.float32), least=0.1) == [[0]]


def test_cohesion_is_the_mean_over_pairs() -> None:
    x = points(3, 9).astype(np.float64)
    pairs = [float(x[i] @ x[j]) for i in range(9) for j in range(i)]
    assert cohesion(x) == pytest.approx(np.mean(pairs))
    assert cohesion(x[:1]) == 1.0
