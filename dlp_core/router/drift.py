"""Whether today's prompts are like those the router was trained for: the population stability index of its margins.

The margins of the prompts whose likeliest adapter is the same, in fixed bins of which the first is "none of these", are
compared with those of the held-back rows of the training (Yurdakul and Naranjo 2020, "Statistical properties of the
population stability index", Journal of Risk Model Validation 14). Counts alone are kept, never a text.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlp_core.router.router import Router
from dlp_core.router.routing import Routing

EDGES = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
"""Between the bins of margins. Below 0 nothing fits; half of the known texts are above 9.2."""
BINS = len(EDGES) + 1
LEAST = 100
"""Prompts of an adapter under which nothing is said about it: by chance alone its index would be 0.1."""
ALL = "(all)"
"""In place of an adapter's name, of which it cannot be one: the prompts of all."""
HOURS = 24

NOVELTY = "novelty"
"""Where a router's training keeps what `reference` returns."""

_PRIOR = 0.5  # added to each bin, so that an empty one is not infinitely unlikely
_QUANTILES = 41

Counts = dict[str, list[float]]
"""By adapter, the prompts in each of BINS."""


def reference(router: Router, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What drift is measured against later: of held-back texts, by likeliest adapter and of all, their number and the
    quantiles of their novelty, from which margins follow for any threshold."""
    novelties: dict[str, list[float]] = {}
    for routing, novelty in zip(router.route(texts), router.novelty(texts).tolist(), strict=True):
        for name in (routing.best, ALL):
            novelties.setdefault(name, []).append(novelty)
    grid = np.linspace(0, 1, _QUANTILES)
    return {
        name: {"rows": len(values), "quantiles": [round(float(value), 4) for value in np.quantile(values, grid)]}
        for name, values in sorted(novelties.items())
    }


def expected(router: Router) -> Counts:
    """The margins of the training's held-back rows, by adapter and of all. A router of an earlier version knows none:
    its curve has rows with other values in it."""
    counts: Counts = {}
    for name, entry in router.training.get(NOVELTY, {}).items():
        margins = -router.calibration.none_log_odds(np.asarray(entry["quantiles"], np.float32))
        bins = np.bincount(np.digitize(margins, EDGES), minlength=BINS)
        counts[name] = (bins * (entry["rows"] / len(margins))).tolist()
    return counts


def stability(expected: Sequence[float], observed: Sequence[float]) -> float:
    """The population stability index of two counts over the same bins, less what chance alone gives, at least 0.

    By custom 0.1 is a change to look at and 0.25 one to act on. Under the null hypothesis its mean is about
    (bins - 1) (1/n + 1/m) for n and m prompts, which is subtracted.
    """
    n, m = sum(expected), sum(observed)
    index = 0.0
    for before, now in zip(expected, observed, strict=True):
        p = (before + _PRIOR) / (n + _PRIOR * len(expected))
        q = (now + _PRIOR) / (m + _PRIOR * len(observed))
        index += (q - p) * math.log(q / p)
    return max(0.0, index - (len(expected) - 1) * (1 / n + 1 / m))


@dataclass(slots=True)
class DriftWindow:
    """The prompts of the last HOURS hours, one count an hour."""

    expected: Mapping[str, Sequence[float]]
    """Counts of the training's held-back rows."""
    _hours: deque[tuple[int, Counts]] = field(default_factory=lambda: deque(maxlen=HOURS))

    def add(self, routing: Routing, *, now: float) -> None:
        """Count a prompt under its likeliest adapter. `now` is in seconds since the epoch."""
        hour = int(now // 3600)
        if not self._hours or self._hours[-1][0] < hour:
            self._hours.append((hour, {}))
        for name in (routing.best, ALL):
            self._hours[-1][1].setdefault(name, [0] * BINS)[bisect_right(EDGES, routing.margin)] += 1

    @property
    def prompts(self) -> float:
        """Those that are counted."""
        return sum(sum(counts[ALL]) for _, counts in self._hours)

    def drift(self, *, now: float) -> dict[str, float]:
        """The index by adapter, and of all under ALL; without those that too few prompts, or none of the training, tell
        of."""
        first = int(now // 3600) - HOURS
        total: Counts = {}
        for hour, counts in self._hours:
            if hour > first:
                for name, bins in counts.items():
                    total[name] = [a + b for a, b in zip(total.get(name, [0] * BINS), bins, strict=True)]
        return {
            name: stability(self.expected[name], bins)
            for name, bins in total.items()
            if sum(bins) >= LEAST and sum(self.expected.get(name, ())) > 0
        }
