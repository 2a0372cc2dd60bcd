"""Distance to the clusters, on hand-made hidden vectors: three tasks, one of them wide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlp_core.router.network import Floats
from dlp_core.router.novelty import Clusters, fit_clusters

H, N = 8, 3
RNG = np.random.default_rng(0)
CENTRES = np.eye(N, H) * 10
WIDTHS = np.array([0.2, 0.2, 0.6])


def _texts(tasks: np.ndarray, *, shift: float = 0.0) -> Floats:
    noise = RNG.normal(size=(len(tasks), H)) * WIDTHS[tasks][:, None]
    return (CENTRES[tasks] + shift * np.eye(H)[-1] + noise).astype(np.float32)


def _confident(tasks: np.ndarray) -> Floats:
    return np.pad(np.eye(N, dtype=np.float32)[tasks] * 0.97 + 0.01, ((0, 0), (0, 1)))


def _fit(tasks: np.ndarray) -> Clusters:
    others = (tasks + RNG.integers(1, N, len(tasks))) % N
    return fit_clusters(
        plain=(_texts(tasks), tasks),
        degraded=(_texts(tasks, shift=4.0), tasks),
        joined=(_texts(tasks) + _texts(others), np.stack([tasks, others], axis=1)),
        adapters=N,
    )


TASKS = RNG.integers(0, N, 3000)
CLUSTERS = _fit(TASKS)
FITTED = CLUSTERS.with_spreads({"plain": (_texts(TASKS), TASKS), "degraded": (_texts(TASKS, shift=4.0), TASKS)})


def test_known_texts_of_every_kind_are_nearer_than_out_of_scope_ones() -> None:
    tasks = np.repeat(np.arange(N), 50)
    unknown = np.zeros((len(tasks), H), np.float32)
    unknown[:, N + 1 :] = RNG.normal(size=(len(tasks), H - N - 1)) * 10
    edge = FITTED.novelty(unknown, _confident(tasks))[0].min()
    for known in (_texts(tasks), _texts(tasks, shift=4.0)):
        novelty, joined = FITTED.novelty(known, _confident(tasks))
        assert novelty.max() < edge
        assert joined.mean() < 0.1


def test_a_joined_text_is_recognised_by_its_pair_of_tasks() -> None:
    left, right = np.zeros(60, np.int64), np.ones(60, np.int64)
    novelty, joined = FITTED.novelty(_texts(left) + _texts(right), (_confident(left) + _confident(right)) / 2)
    assert joined.mean() > 0.9
    assert np.median(novelty) < 1.0


def test_a_task_with_diverse_texts_gets_a_larger_spread() -> None:
    tasks = np.repeat(np.arange(N), 200)
    hidden, confident = _texts(tasks), _confident(tasks)

    def spread_between_tasks(clusters: Clusters) -> float:
        novelty, _ = clusters.novelty(hidden, confident)
        return float(np.quantile(novelty[tasks == 2], 0.9) - np.quantile(novelty[tasks < 2], 0.9))

    assert spread_between_tasks(CLUSTERS) > 1.0
    assert abs(spread_between_tasks(FITTED)) < 0.4


def test_a_confident_network_lowers_novelty() -> None:
    tasks = np.zeros(1, np.int64)
    hidden = _texts(tasks)
    uncertain = np.array([[0.5, 0.3, 0.1, 0.1]], np.float32)
    assert FITTED.novelty(hidden, uncertain)[0] > FITTED.novelty(hidden, _confident(tasks))[0]


@pytest.mark.parametrize("adapters", [2, 3])
def test_a_bank_may_be_as_small_as_two(adapters: int) -> None:
    tasks = RNG.integers(0, adapters, 300)
    clusters = fit_clusters(
        plain=(_texts(tasks), tasks),
        degraded=(_texts(tasks), tasks),
        joined=(_texts(tasks), np.stack([tasks, (tasks + 1) % adapters], axis=1)),
        adapters=adapters,
    )
    assert np.isfinite(
        clusters.novelty(_texts(tasks), np.delete(_confident(tasks), np.s_[adapters:N], axis=1))[0]
    ).all()


def test_an_added_task_must_be_preferred_to_none() -> None:
    tasks = np.zeros(2, np.int64)
    uncertain = np.array([[0.5, 0.0, 0.0, 0.4], [0.4, 0.0, 0.0, 0.5]], np.float32)
    for clusters, is_novel in ((FITTED, False), (replace(FITTED, grown_N=np.array([True, False, False])), True)):
        novelty, _ = clusters.novelty(_texts(tasks), uncertain)
        assert bool(novelty[1] > novelty[0] + 3) == is_novel
