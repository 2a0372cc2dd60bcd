"""Out-of-scope detection: how far a text is from everything the bank was trained for.

A softmax must choose, so it is confident even about texts of no task. Their position in the second hidden layer gives
them away: each task is a narrow cluster there (Lee et al. 2018, arXiv 1807.03888, Mahalanobis distance with a shared
covariance). A text is one of three kinds, each with clusters of its own:

    plain      a complete prompt of one task                 centre of task i:        m_i
    degraded   the same without its instruction, or with typos                        m'_i
    joined     the prompts of two tasks in one text          centre of tasks i, j:    a_i + a_j

    novelty = min over kinds and the likeliest tasks of   log d2 - spread + CONFIDENCE * log(max(1 - p, EPSILON))

where d2 is the squared distance over its 90% quantile on training rows, p the network's probability of the task(s), and
spread how much wider the task's cluster is than others on rows the network has not seen. Without it one task of single
unusual words sets the threshold for all: with 4 of 26 tasks left out, AUROC is 0.986 without and 0.996 with it.

The hidden layer was not trained on a task that was added later (growth.py): its cluster may be wide and overlap with
out-of-scope texts. Its texts are novel unless the network prefers the task to "none of these".
Shape letters: B texts, H hidden, N adapters, M = N + 1 outputs, K kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.network import Floats

PENALTY: Mapping[str, float] = {"plain": 1.0, "degraded": 1.3, "joined": 1.6}
"""Factor on d2 by kind: a text that lacks half of its task is likelier to be out of scope."""

_JOINED = list(PENALTY).index("joined")
_CANDIDATES = 3
_TYPICAL_QUANTILE = 0.9
_JOINED_MARGIN = 0.6  # calls 1% of single texts joined (11% without it) and 94% of joined ones (97% without it)
_NOT_PREFERRED_PENALTY = np.float32(16.0)
_PRIOR_ROWS = 5  # with this many rows, a task's own spread counts half
_CONFIDENCE = np.float32(0.2)
_EPSILON = np.float32(1e-4)
_ONE, _TINY = np.float32(1.0), np.float32(1e-12)
_SHRINKAGE = 0.03  # fraction of the mean variance added to each direction, so that none has zero variance


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """`whitening_KHH[k]` maps a unit hidden vector to a space where d2 is the squared distance to `centres_KNH[k]`."""

    whitening_KHH: Floats
    centres_KNH: Floats
    spreads_KN: Floats
    """log of a task's typical d2 over that of all tasks; for joined texts, each task's contribution."""
    grown_N: NDArray[np.bool_]
    """Whether each task was added after the training."""

    def novelty(self, hidden_BH: Floats, probabilities_BM: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Compute the novelty of B texts, (B,): around 0 at the boundary of the known tasks, higher is more novel.

        Also returns whether each text is clearly closer to joined texts than to single ones, (B,).
        """
        kinds, adapters, width = self.centres_KNH.shape
        texts = np.arange(len(hidden_BH))[:, None]
        whitened_BKH = (_unit(hidden_BH) @ self.whitening_KHH.reshape(-1, width).T).reshape(-1, kinds, width)
        candidates = min(_CANDIDATES, adapters)
        kind, first, second = _hypotheses(candidates)
        singles = len(kind) - len(second)
        order = probabilities_BM[:, :-1].argpartition(range(adapters - candidates, adapters), axis=1)
        likeliest = order[:, : -candidates - 1 : -1]
        i, j = likeliest.take(first, axis=1), likeliest.take(second, axis=1)

        offset = whitened_BKH.take(kind, axis=1) - self.centres_KNH[kind, i]
        offset[:, singles:] -= self.centres_KNH[_JOINED, j]
        spread = self.spreads_KN[kind, i]
        spread[:, singles:] += self.spreads_KN[_JOINED, j]
        p = probabilities_BM[texts, i]
        p[:, singles:] += probabilities_BM[texts, j]
        scores = np.log(np.vecdot(offset, offset) + _TINY) - spread
        scores += _CONFIDENCE * np.log(np.maximum(_ONE - p, _EPSILON))
        grown = self.grown_N[i]
        grown[:, singles:] |= self.grown_N[j]
        scores += _NOT_PREFERRED_PENALTY * (grown & (p < probabilities_BM[:, -1:]))
        single = scores[:, :singles].min(axis=1)
        joined = scores[:, singles:].min(axis=1, initial=np.inf)
        return np.minimum(single, joined), single - joined > _JOINED_MARGIN

    def with_spreads(self, held_back: Mapping[str, tuple[Floats, NDArray[np.int64]]]) -> Clusters:
        """Fit spreads to held-back hidden vectors (B, H) and tasks (B,) of plain and degraded texts."""
        kinds, adapters, _ = self.centres_KNH.shape
        spreads = np.zeros((kinds, adapters), np.float32)
        for kind, name in enumerate(PENALTY):
            if name not in held_back:
                continue
            hidden, tasks = held_back[name]
            offset = _unit(hidden) @ self.whitening_KHH[kind].T - self.centres_KNH[kind, tasks]
            log_d2 = np.log(np.square(offset).sum(axis=1) + 1e-12)
            typical = np.quantile(log_d2, _TYPICAL_QUANTILE)
            for task in range(adapters):
                own = log_d2[tasks == task]
                trust = len(own) / (len(own) + _PRIOR_ROWS)
                spreads[kind, task] = trust * (np.quantile(own, _TYPICAL_QUANTILE) - typical)
        return replace(self, spreads_KN=spreads)

    def only(self, kept: Sequence[int]) -> Clusters:
        """The clusters of these tasks, in this order."""
        indices = list(kept)
        return Clusters(
            self.whitening_KHH, self.centres_KNH[:, indices], self.spreads_KN[:, indices], self.grown_N[indices]
        )

    def widened(self, task: int, by: float) -> Clusters:
        """Increase the spread of one task."""
        spreads = self.spreads_KN.copy()
        spreads[:, task] += by
        return replace(self, spreads_KN=spreads)

    def with_task(
        self,
        *,
        plain: Floats,
        degraded: Floats,
        joined: tuple[Floats, NDArray[np.integer]],
        known: tuple[Floats, NDArray[np.integer]],
    ) -> Clusters:
        """Add a task, from hidden vectors of its texts (B, H).

        `joined` are texts of the new task and a known task, with the known task's index; `known` are plain texts of
        known tasks and their indices, on which the typical distance is measured.
        """
        points = []
        for kind, hidden in enumerate((plain, degraded, joined[0])):
            whitened = _unit(hidden) @ self.whitening_KHH[kind].T
            points.append(whitened - self.centres_KNH[kind, joined[1]] if kind == _JOINED else whitened)
        known_points = _unit(known[0]) @ self.whitening_KHH[0].T - self.centres_KNH[0, known[1]]
        typical = np.quantile(np.log(np.square(known_points).sum(axis=1) + _TINY), _TYPICAL_QUANTILE)
        centres, spreads = [], []
        for penalty, whitened in zip(PENALTY.values(), points, strict=True):
            centre = whitened.mean(axis=0)
            # leave-one-out: each text pulls the centre towards itself
            offset = (whitened - centre) * (len(whitened) / (len(whitened) - 1))
            own = np.quantile(np.log(np.square(offset).sum(axis=1) + _TINY), _TYPICAL_QUANTILE)
            centres.append(centre)
            spreads.append(own - typical - np.log(penalty / PENALTY["plain"]))
        return replace(
            self,
            centres_KNH=np.concatenate([self.centres_KNH, np.stack(centres)[:, None]], axis=1, dtype=np.float32),
            spreads_KN=np.concatenate([self.spreads_KN, np.array(spreads)[:, None]], axis=1, dtype=np.float32),
            grown_N=np.append(self.grown_N, True),
        )


@cache
def _hypotheses(candidates: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """All hypotheses on a text: its kind and its task's rank; joined ones last, with the second task's rank."""
    single = [(kind, rank) for kind in range(_JOINED) for rank in range(candidates)]
    pairs = list(combinations(range(candidates), 2))
    kind, rank = np.array([*single, *((_JOINED, first) for first, _ in pairs)]).T
    return kind, rank, np.array([second for _, second in pairs], np.int64)


def fit_clusters(
    *,
    plain: tuple[Floats, NDArray[np.int64]],
    degraded: tuple[Floats, NDArray[np.int64]],
    joined: tuple[Floats, NDArray[np.int64]],
    adapters: int,
) -> Clusters:
    """Fit clusters, all with the same spread, to hidden vectors (B, H) and tasks: (B,), or (B, 2) for joined."""
    whitening, centres = [], []
    for kind, (hidden, tasks) in {"plain": plain, "degraded": degraded, "joined": joined}.items():
        unit = _unit(hidden).astype(np.float64)
        members = np.zeros((len(unit), adapters))
        np.put_along_axis(members, tasks.reshape(len(unit), -1), 1.0, axis=1)
        # Least squares on membership gives the mean of a task for single texts, its part a_i for joined ones.
        centre = np.linalg.solve(members.T @ members + 1e-3 * np.eye(adapters), members.T @ unit)
        residual = unit - members @ centre
        covariance = residual.T @ residual / len(unit)
        covariance += (_SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
        whiten = np.linalg.cholesky(np.linalg.inv(covariance)).T
        typical = np.quantile(np.square(residual @ whiten.T).sum(axis=1), _TYPICAL_QUANTILE)
        whiten *= np.sqrt(PENALTY[kind] / typical)
        whitening.append(whiten)
        centres.append(centre @ whiten.T)
    return Clusters(
        np.stack(whitening).astype(np.float32),
        np.stack(centres).astype(np.float32),
        np.zeros((len(PENALTY), adapters), np.float32),
        np.zeros(adapters, np.bool_),
    )


def _unit(hidden_BH: Floats) -> Floats:
    norms = np.sqrt(np.vecdot(hidden_BH, hidden_BH)) + _TINY
    unit: Floats = hidden_BH / norms[:, None]
    return unit
