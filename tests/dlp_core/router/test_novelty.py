"""Distance to the clouds, on hidden vectors made by hand: three tasks, one of them wide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlp_core.router.network import Floats
from dlp_core.router.novelty import Clouds, fit_clouds

H, N = 8, 3
RNG = np.random.default_rng(0)
CENTRES = np.eye(N, H) * 10
WIDTHS = np.array([0.2, 0.2, 0.6])


def _texts(tasks: np.ndarray, *, shift: float = 0.0) -> Floats:
    noise = RNG.normal(size=(len(tasks), H)) * WIDTHS[tasks][:, None]
    return (CENTRES[tasks] + shift * np.eye(H)[-1] + noise).astype(np.float32)


def _sure(tasks: np.ndarray) -> Floats:
    return np.pad(np.eye(N, dtype=np.float32)[tasks] * 0.97 + 0.01, ((0, 0), (0, 1)))


def _fit(tasks: np.ndarray) -> Clouds:
    others = (tasks + RNG.integers(1, N, len(tasks))) % N
    return fit_clouds(
        plain=(_texts(tasks), tasks),
        worn=(_texts(tasks, shift=4.0), tasks),
        joined=(_texts(tasks) + _texts(others), np.stack([tasks, others], axis=1)),
        adapters=N,
    )


TASKS = RNG.integers(0, N, 3000)
CLOUDS = _fit(TASKS)
WIDENED = CLOUDS.widened({"plain": (_texts(TASKS), TASKS), "worn": (_texts(TASKS, shift=4.0), TASKS)})


def test_known_texts_of_every_kind_are_nearer_than_strange_ones() -> None:
    tasks = np.repeat(np.arange(N), 50)
    strange = np.zeros((len(tasks), H), np.float32)
    strange[:, N + 1 :] = RNG.normal(size=(len(tasks), H - N - 1)) * 10
    edge = WIDENED.novelty(strange, _sure(tasks))[0].min()
    for known in (_texts(tasks), _texts(tasks, shift=4.0)):
        novelty, joined = WIDENED.novelty(known, _sure(tasks))
        assert novelty.max() < edge
        assert joined.mean() < 0.1


def test_a_joined_text_is_recognised_by_its_pair_of_tasks() -> None:
    left, right = np.zeros(60, np.int64), np.ones(60, np.int64)
    novelty, joined = WIDENED.novelty(_texts(left) + _texts(right), (_sure(left) + _sure(right)) / 2)
    assert joined.mean() > 0.9
    assert np.median(novelty) < 1.0


def test_a_task_whose_texts_differ_much_is_given_its_own_measure() -> None:
    tasks = np.repeat(np.arange(N), 200)
    hidden, sure = _texts(tasks), _sure(tasks)

    def spread_between_tasks(clouds: Clouds) -> float:
        novelty, _ = clouds.novelty(hidden, sure)
        return float(np.quantile(novelty[tasks == 2], 0.9) - np.quantile(novelty[tasks < 2], 0.9))

    assert spread_between_tasks(CLOUDS) > 1.0
    assert abs(spread_between_tasks(WIDENED)) < 0.4


def test_a_sure_network_makes_a_text_less_strange() -> None:
    tasks = np.zeros(1, np.int64)
    hidden = _texts(tasks)
    unsure = np.array([[0.5, 0.3, 0.1, 0.1]], np.float32)
    assert WIDENED.novelty(hidden, unsure)[0] > WIDENED.novelty(hidden, _sure(tasks))[0]


@pytest.mark.parametrize("adapters", [2, 3])
def test_a_bank_may_be_as_small_as_two(adapters: int) -> None:
    tasks = RNG.integers(0, adapters, 300)
    clouds = fit_clouds(
        plain=(_texts(tasks), tasks),
        worn=(_texts(tasks), tasks),
        joined=(_texts(tasks), np.stack([tasks, (tasks + 1) % adapters], axis=1)),
        adapters=adapters,
    )
    assert np.isfinite(clouds.novelty(_texts(tasks), np.delete(_sure(tasks), np.s_[adapters:N], axis=1))[0]).all()


def test_a_task_that_was_added_must_be_preferred_to_none() -> None:
    tasks = np.zeros(2, np.int64)
    unsure = np.array([[0.5, 0.0, 0.0, 0.4], [0.4, 0.0, 0.0, 0.5]], np.float32)
    for clouds, stranger in ((WIDENED, False), (replace(WIDENED, grown_N=np.array([True, False, False])), True)):
        novelty, _ = clouds.novelty(_texts(tasks), unsure)
        assert bool(novelty[1] > novelty[0] + 3) == stranger
