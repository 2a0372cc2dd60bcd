"""Groups of vectors: agglomerative clustering with average linkage, down to a least similarity."""

from __future__ import annotations

import numpy as np

from dlp_core.router.encoder import Floats


def clusters(x_BD: Floats, *, least: float) -> list[list[int]]:
    """Rows of unit length, grouped: the two groups that are most alike are merged, as long as the mean cosine of their
    pairs is at least `least`. The largest group first. Takes B^2 memory and B^2 to B^3 time."""
    count = len(x_BD)
    if count == 0:
        return []
    mean_BB = (x_BD @ x_BD.T).astype(np.float64)
    np.fill_diagonal(mean_BB, -np.inf)
    members = [[row] for row in range(count)]
    nearest_B = mean_BB.argmax(axis=1)
    closeness_B = mean_BB[np.arange(count), nearest_B]
    while closeness_B.max() >= least:
        first = int(closeness_B.argmax())
        second = int(nearest_B[first])
        sizes = len(members[first]), len(members[second])
        merged_B = (sizes[0] * mean_BB[first] + sizes[1] * mean_BB[second]) / sum(sizes)
        merged_B[[first, second]] = -np.inf
        mean_BB[first], mean_BB[:, first] = merged_B, merged_B
        mean_BB[second], mean_BB[:, second] = -np.inf, -np.inf
        members[first] += members[second]
        members[second] = []
        closeness_B[second] = -np.inf
        stale = np.flatnonzero((nearest_B == first) | (nearest_B == second))
        changed = np.unique([*stale.tolist(), first])
        changed = changed[[bool(members[row]) for row in changed]]
        nearest_B[changed] = mean_BB[changed].argmax(axis=1)
        closeness_B[changed] = mean_BB[changed, nearest_B[changed]]
        nearer = merged_B > closeness_B
        nearer[first] = False
        nearest_B[nearer], closeness_B[nearer] = first, merged_B[nearer]
    return sorted((sorted(group) for group in members if group), key=lambda group: (-len(group), group[0]))


def cohesion(x_BD: Floats) -> float:
    """The mean cosine of the pairs of rows of unit length; 1 for a single row."""
    count = len(x_BD)
    if count < 2:
        return 1.0
    total = float(np.square(x_BD.sum(axis=0, dtype=np.float64)).sum())
    return (total - count) / (count * (count - 1))
