"""How far a text lies from everything the bank was trained for.

A softmax must choose, so it is sure about texts of no task. What betrays them is their place in the second hidden
layer: every task is a narrow cloud there (Lee et al. 2018, arXiv 1807.03888, Mahalanobis distance with a shared
covariance). A text may be seen in three ways, each with its own clouds:

    plain    a whole prompt of one task                    centre of task i:        m_i
    worn     the same without its instruction, or with typos                        m'_i
    joined   the prompts of two tasks in one text          centre of tasks i, j:    a_i + a_j

    novelty = min over ways and the likeliest tasks of   log d2 + SURENESS * log(1 - p + EPSILON)

where d2 is the squared distance over its 90% quantile on training rows, and p what the network gives to the task(s).
Shape letters: B texts, H hidden, N adapters, W ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.network import Floats

PENALTY: Mapping[str, float] = {"plain": 1.0, "worn": 1.3, "joined": 1.6}
"""d2 counts this much more: text that misses half of its task is likelier to be of no task."""

_CANDIDATES = 3
_SURENESS = 0.2
_EPSILON = 1e-4
_SHRINKAGE = 0.03  # share of the mean variance added to each direction, so that none is infinitely narrow


@dataclass(frozen=True, slots=True, eq=False)
class Clouds:
    """`whitening_WHH[w]` maps a unit hidden vector to where d2 is plain squared distance to `centres_WNH[w]`."""

    whitening_WHH: Floats
    centres_WNH: Floats

    def novelty(self, hidden_BH: Floats, probabilities_BN: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Novelty of B texts, (B,): around 0 at the edge of what is known, higher is stranger.

        Also whether each is closest to the joined texts, (B,).
        """
        unit = _unit(hidden_BH)
        ways, _, width = self.whitening_WHH.shape
        seen_BWH = (unit @ self.whitening_WHH.reshape(ways * width, width).T).reshape(-1, ways, width)
        likely = np.argsort(-probabilities_BN, axis=1, kind="stable")[:, :_CANDIDATES]
        p = np.take_along_axis(probabilities_BN, likely, axis=1)
        left, right = map(list, zip(*combinations(range(likely.shape[1]), 2), strict=True))
        plain, worn, joined = self.centres_WNH
        centres = (plain[likely], worn[likely], joined[likely[:, left]] + joined[likely[:, right]])
        chances = (p, p, p[:, left] + p[:, right])
        d2 = [np.square(seen_BWH[:, way, None] - centre).sum(axis=2) for way, centre in enumerate(centres)]
        doubt = 1.0 - np.concatenate(chances, axis=1)
        scores = np.log(np.concatenate(d2, axis=1) + 1e-12) + _SURENESS * np.log(np.maximum(doubt, 0) + _EPSILON)
        best = scores.argmin(axis=1)
        nearest = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        return np.asarray(nearest, np.float32), best >= 2 * likely.shape[1]


def fit_clouds(
    *,
    plain: tuple[Floats, NDArray[np.int64]],
    worn: tuple[Floats, NDArray[np.int64]],
    joined: tuple[Floats, NDArray[np.int64]],
    adapters: int,
) -> Clouds:
    """Fits clouds to hidden vectors (B, H) with their tasks: (B,) for plain and worn, (B, 2) for joined."""
    whitening, centres = [], []
    for way, (hidden, tasks) in {"plain": plain, "worn": worn, "joined": joined}.items():
        unit = _unit(hidden).astype(np.float64)
        members = np.zeros((len(unit), adapters))
        np.put_along_axis(members, tasks.reshape(len(unit), -1), 1.0, axis=1)
        # Least squares on membership: the mean of a task for single texts, its share a_i for joined ones.
        centre = np.linalg.solve(members.T @ members + 1e-3 * np.eye(adapters), members.T @ unit)
        residual = unit - members @ centre
        covariance = residual.T @ residual / len(unit)
        covariance += (_SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
        whiten = np.linalg.cholesky(np.linalg.inv(covariance)).T
        typical = np.quantile(np.square(residual @ whiten.T).sum(axis=1), 0.9)
        whiten *= np.sqrt(PENALTY[way] / typical)
        whitening.append(whiten)
        centres.append(centre @ whiten.T)
    return Clouds(np.stack(whitening).astype(np.float32), np.stack(centres).astype(np.float32))


def _unit(hidden_BH: Floats) -> Floats:
    norms = np.sqrt(np.square(hidden_BH).sum(axis=1, keepdims=True))
    return np.asarray(hidden_BH / (norms + np.float32(1e-12)), np.float32)
