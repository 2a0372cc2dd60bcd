"""Distance to the clusters, on hand-made hidden vectors: three tasks, one of them wide."""

from __future__ import annotations

import numpy as np
import pytest

from dlp_core.router.encoder import Floats
from dlp_core.router.novelty import Clusters, fit_clusters

H, N = 8, 3
RNG = np.random.default_rng(0)
CENTRES = np.eye(N, H) * 10
WIDTHS = np.array([0.2, 0.2, 0.6])


def _texts(tasks: np.ndarray) -> Floats:
    noise = RNG.normal(size=(len(tasks), H)) * WIDTHS[tasks][:, None]
    return (CENTRES[tasks] + noise).astype(np.float32)


def _strangers(count: int, *, axes: slice = slice(N + 1, H)) -> Floats:
    hidden = np.zeros((count, H), np.float32)
    hidden[:, axes] = RNG.normal(size=hidden[:, axes].shape) * 10
    return hidden


def _confident(tasks: np.ndarray) -> Floats:
    return np.eye(N, dtype=np.float32)[tasks] * 0.97 + 0.01


TASKS = RNG.integers(0, N, 3000)
CLUSTERS = fit_clusters(_texts(TASKS), TASKS, N, _strangers(50))
FITTED = CLUSTERS.with_spreads(_texts(TASKS), TASKS)


def test_known_texts_are_nearer_than_strangers() -> None:
    tasks = np.repeat(np.arange(N), 50)
    edge = FITTED.novelty(_strangers(len(tasks)), _confident(tasks)).min()
    assert FITTED.novelty(_texts(tasks), _confident(tasks)).max() < edge


def test_strangers_like_known_strangers_are_the_most_novel() -> None:
    tasks = np.zeros(200, np.int64)
    without = fit_clusters(_texts(TASKS), TASKS, N, _strangers(0)).with_spreads(_texts(TASKS), TASKS)
    strangers = _strangers(200)
    gain = FITTED.novelty(strangers, _confident(tasks)) - without.novelty(strangers, _confident(tasks))
    known = _texts(tasks)
    assert np.median(gain) > np.median(
        FITTED.novelty(known, _confident(tasks)) - without.novelty(known, _confident(tasks))
    )


def test_a_task_with_diverse_texts_gets_a_larger_spread() -> None:
    tasks = np.repeat(np.arange(N), 200)
    hidden, confident = _texts(tasks), _confident(tasks)

    def spread_between_tasks(clusters: Clusters) -> float:
        novelty = clusters.novelty(hidden, confident)
        return float(np.quantile(novelty[tasks == 2], 0.9) - np.quantile(novelty[tasks < 2], 0.9))

    assert spread_between_tasks(CLUSTERS) > 1.0
    assert abs(spread_between_tasks(FITTED)) < 0.4


def test_a_confident_network_lowers_novelty() -> None:
    tasks = np.zeros(1, np.int64)
    hidden = _texts(tasks)
    unsure = np.array([[0.5, 0.4, 0.1]], np.float32)
    assert FITTED.novelty(hidden, unsure) > FITTED.novelty(hidden, _confident(tasks))


@pytest.mark.parametrize("adapters", [1, 2, 3])
def test_a_bank_may_be_small(adapters: int) -> None:
    tasks = RNG.integers(0, adapters, 300)
    clusters = fit_clusters(_texts(tasks), tasks, adapters, _strangers(9))
    assert np.isfinite(clusters.novelty(_texts(tasks), _confident(tasks)[:, :adapters])).all()


def test_an_added_task_is_known_where_its_texts_lie() -> None:
    two = FITTED.only([0, 1])
    new = _texts(np.full(8, 2))
    grown = two.with_task(1, two.whiten(new), spread=0.5)
    texts, confident = _texts(np.full(50, 2)), _confident(np.full(50, 1))
    assert len(grown.centres_NK) == N
    assert np.median(grown.novelty(texts, confident)) < np.median(two.novelty(texts, confident[:, :2])) - 1
    assert (grown.only([0, 2]).centres_NK == two.centres_NK).all()
