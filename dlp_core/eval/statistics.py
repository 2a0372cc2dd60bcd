"""Means of rows with their confidence, by bootstrap: rows are drawn again within each task.

Two arms are compared row by row: the difference of the same question's scores is what is drawn again, so that hard and
easy questions cancel out. A difference holds where its whole interval lies on one side of zero.
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
    """A mean and the interval its bootstrap fills to the level asked for."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The mean of one task's rows. Raises ValueError without any."""
    return estimate_over_tasks({"": values}, level=level, seed=seed)


def estimate_over_tasks(values: Mapping[str, Sequence[float]], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The mean over tasks of each task's mean: every task counts the same. Raises ValueError without any row."""
    if not values or not all(map(len, values.values())):
        raise ValueError("a mean needs a row of every task")
    drawn = np.mean(
        [_resampled(np.asarray(rows, np.float64), seed, place) for place, rows in enumerate(values.values())], 0
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([np.mean(rows) for rows in values.values()]))
    return Estimate(mean, float(low), float(high))


def _resampled(rows: Floats, seed: int, place: int) -> Floats:
    """Means of RESAMPLES draws, with replacement, of as many rows."""
    random = np.random.default_rng((seed, place))
    means: Floats = rows[random.integers(0, len(rows), (RESAMPLES, len(rows)))].mean(1)
    return means
