"""Out-of-scope detection: how far a text is from everything the bank was trained for.

A softmax must choose, so it is confident even about texts of no task. Their position in the hidden layer gives them
away: each task is a cluster there (Lee et al. 2018, arXiv 1807.03888, Mahalanobis distance with a shared covariance).

    novelty = min over the likeliest tasks of   log d2 - spread - CONFIDENCE * p - STRANGENESS * log s2

where d2 is the squared distance of the unit hidden vector from the task's centre over its typical value, p the
network's probability of the task, and spread how much wider the task's cluster is than others on texts the network has
not seen. Without it one task of single unusual words sets the threshold for all. s2 is the squared distance to the
nearest of some texts of no task, as in the relative distance of Ren et al. 2021 (arXiv 2106.09022). Distances are taken
in a random subspace, which keeps them (Johnson and Lindenstrauss 1984): the principal one would lose the directions in
which strangers differ. Shape letters: B texts, H hidden, K dimensions of the subspace, N adapters, S strangers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.encoder import Floats

DIMENSIONS = 192

_CANDIDATES = 3
_TYPICAL_QUANTILE = 0.9
_PRIOR_ROWS = 5  # with this many rows, a task's own spread counts half
_CONFIDENCE, _STRANGENESS = np.float32(1.0), np.float32(0.5)
_NEAR = np.float32(1e-3)
_TINY = np.float32(1e-12)
_SHRINKAGE = 0.03  # fraction of the mean variance added to each direction, so that none has zero variance


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """`whitening_KH` maps a unit hidden vector to a space where d2 is the squared distance to `centres_NK`."""

    whitening_KH: Floats
    centres_NK: Floats
    spreads_N: Floats
    """log of a task's typical d2 over that of all tasks."""
    strangers_SK: Floats
    """Where texts of no task lie."""
    _squares_S: Floats = field(init=False, repr=False)
    """Of the lengths of strangers_SK; summing them for each text would take longer than all else."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_squares_S", np.vecdot(self.strangers_SK, self.strangers_SK))

    @property
    def parameters(self) -> int:
        arrays = (self.whitening_KH, self.centres_NK, self.spreads_N, self.strangers_SK)
        return sum(int(array.size) for array in arrays)

    def novelty(self, hidden_BH: Floats, probabilities_BN: Floats) -> Floats:
        """Compute the novelty of B texts, (B,); higher is more novel."""
        adapters = probabilities_BN.shape[1]
        candidates = min(_CANDIDATES, adapters)
        likeliest = probabilities_BN.argpartition(adapters - candidates, axis=1)[:, adapters - candidates :]
        whitened = self.whiten(hidden_BH)
        offset = whitened[:, None, :] - self.centres_NK[likeliest]
        scores = np.log(np.vecdot(offset, offset) + _TINY) - self.spreads_N[likeliest]
        scores -= _CONFIDENCE * probabilities_BN[np.arange(len(likeliest))[:, None], likeliest]
        novelty: Floats = scores.min(axis=1)
        if len(self.strangers_SK):
            novelty -= _STRANGENESS * np.log(self._stranger_distance(whitened))
        return novelty

    def _stranger_distance(self, whitened_BK: Floats) -> Floats:
        """The squared distance to the nearest stranger, (B,)."""
        products = self._squares_S - 2 * (whitened_BK @ self.strangers_SK.T)
        distance: Floats = np.maximum(np.vecdot(whitened_BK, whitened_BK) + products.min(axis=1), _NEAR)
        return distance

    def whiten(self, hidden_BH: Floats) -> Floats:
        """Where hidden vectors lie among the centres, (B, K)."""
        whitened: Floats = _unit(hidden_BH) @ self.whitening_KH.T
        return whitened

    def with_spreads(self, hidden_BH: Floats, tasks_B: NDArray[np.int64]) -> Clusters:
        """Fit spreads to hidden vectors of texts the network has not seen."""
        offset = self.whiten(hidden_BH) - self.centres_NK[tasks_B]
        log_d2 = np.log(np.vecdot(offset, offset) + _TINY)
        typical = np.quantile(log_d2, _TYPICAL_QUANTILE)
        spreads = np.zeros(len(self.centres_NK), np.float32)
        for task in range(len(spreads)):
            own = log_d2[tasks_B == task]
            if len(own):
                trust = len(own) / (len(own) + _PRIOR_ROWS)
                spreads[task] = trust * (np.quantile(own, _TYPICAL_QUANTILE) - typical)
        return replace(self, spreads_N=spreads)

    def with_task(self, index: int, whitened_BK: Floats, *, spread: float) -> Clusters:
        """Insert a task, from where its texts lie. Their mean is not quite its centre, and the fewer they are, the
        wider its cluster seems; `spread` comes on top."""
        count = len(whitened_BK)
        wider = math.log1p(1 / count)
        return replace(
            self,
            centres_NK=np.insert(self.centres_NK, index, whitened_BK.mean(axis=0), axis=0),
            spreads_N=np.insert(self.spreads_N, index, np.float32(wider + spread)),
        )

    def only(self, kept: Sequence[int]) -> Clusters:
        """The clusters of these tasks, in this order."""
        indices = list(kept)
        return replace(self, centres_NK=self.centres_NK[indices], spreads_N=self.spreads_N[indices])


def fit_clusters(hidden_BH: Floats, tasks_B: NDArray[np.int64], adapters: int, strangers_SH: Floats) -> Clusters:
    """Fit clusters, all with the same spread, to hidden vectors and their tasks, and place those of strangers."""
    width = hidden_BH.shape[1]
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, min(width, DIMENSIONS))))
    unit = _unit(hidden_BH).astype(np.float64) @ basis
    sums = np.zeros((adapters, unit.shape[1]))
    np.add.at(sums, tasks_B, unit)
    centres = sums / np.maximum(np.bincount(tasks_B, minlength=adapters), 1)[:, None]
    residual = unit - centres[tasks_B]
    covariance = residual.T @ residual / len(unit)
    covariance += (_SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).T
    whitening /= np.sqrt(np.quantile(np.square(residual @ whitening.T).sum(axis=1), _TYPICAL_QUANTILE))
    projection = (whitening @ basis.T).astype(np.float32)
    return Clusters(
        projection,
        (centres @ whitening.T).astype(np.float32),
        np.zeros(adapters, np.float32),
        _unit(strangers_SH) @ projection.T,
    )


def _unit(hidden_BH: Floats) -> Floats:
    norms = np.sqrt(np.vecdot(hidden_BH, hidden_BH)) + _TINY
    unit: Floats = hidden_BH / norms[:, None]
    return unit
