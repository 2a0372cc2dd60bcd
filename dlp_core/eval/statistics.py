"""Means with bootstrap confidence intervals: rows are resampled within each task.

Two arms are compared row by row (a paired bootstrap): the differences of each question's scores are resampled, so that
hard and easy questions cancel out. A difference is significant if its whole interval lies on one side of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate the mean of one task's rows. Raises ValueError if there are none."""
    return estimate_over_tasks({"": values}, level=level, seed=seed)


def estimate_over_tasks(values: Mapping[str, Sequence[float]], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate the mean of the tasks' means, all tasks weighted equally. Raises ValueError if there are no tasks or one
    has no rows."""
    if not values or not all(map(len, values.values())):
        raise ValueError("a mean needs at least one task, and a row of every task")
    resampled = np.mean(
        [_resampled_means(np.asarray(rows, np.float64), seed, index) for index, rows in enumerate(values.values())], 0
    )
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([np.mean(rows) for rows in values.values()]))
    return Estimate(mean, float(low), float(high))


def _resampled_means(rows: Floats, seed: int, index: int) -> Floats:
    """Means of RESAMPLES resamples, each of len(rows) rows drawn with replacement."""
    random = np.random.default_rng((seed, index))
    means: Floats = rows[random.integers(0, len(rows), (RESAMPLES, len(rows)))].mean(1)
    return means
