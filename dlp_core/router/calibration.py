"""Makes the router's numbers mean what they say. Fitted on rows the network was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.network import Floats, softmax

Values = NDArray[np.floating]

LEAST_KEPT = 0.985
"""Share of the plain texts that no background may talk the threshold below."""

_TEMPERATURES = np.geomspace(0.1, 4.0, 161).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperatures divide the logits, novelty x becomes the none mass sigmoid(slope * (x - threshold)).

    A text that joins two tasks has its own temperature: in a bag of features the longer part drowns the shorter
    one, and the network is surer of it than it should be.
    """

    temperature: float
    joined_temperature: float
    threshold: float
    slope: float

    def shares(self, logits_BN: Floats, joined_B: NDArray[np.bool_]) -> Floats:
        """Calibrated distribution over the adapters, (B, N)."""
        return softmax(self.scaled(logits_BN, joined_B))

    def scaled(self, logits_BN: Floats, joined_B: NDArray[np.bool_]) -> Floats:
        """The logits of `shares`."""
        temperatures = np.array([self.temperature, self.joined_temperature], np.float32)
        divided: Floats = logits_BN / temperatures[joined_B.view(np.int8), None]
        return divided

    def none_mass(self, novelty_B: Floats) -> Floats:
        half = np.float32(0.5)  # the logistic function as a tanh, which cannot overflow
        mass: Floats = half + half * np.tanh(half * self.none_exponent(novelty_B))
        return mass

    def none_exponent(self, novelty_B: Floats) -> Floats:
        """log(none / (1 - none))."""
        exponent: Floats = np.float32(self.slope) * (novelty_B - np.float32(self.threshold))
        return exponent


def fit_temperature(logits_BN: Floats, tasks_B: NDArray[np.integer]) -> float:
    """The temperature at which the mean of the highest shares is the share of right answers.

    The least cross-entropy (Guo et al. 2017, arXiv 1706.04599) would let a few odd texts make all others doubtful. Half
    a wrong answer is added: a few rows that are all right would ask for temperature 0.
    """
    right = int((logits_BN.argmax(axis=1) == tasks_B).sum())
    wanted = (right + 0.5) / (len(tasks_B) + 1)
    means = np.array([softmax(logits_BN / t).max(axis=1).mean() for t in _TEMPERATURES])
    return float(_TEMPERATURES[np.abs(means - wanted).argmin()])


def fit_joined_temperature(logits_BN: Floats, targets_BN: Floats) -> float:
    """The temperature with the least cross-entropy to the shares of two tasks."""
    losses = [-(targets_BN * np.log(softmax(logits_BN / t) + 1e-9)).sum(axis=1).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def fit_none(novelty: dict[str, Values], keep: dict[str, float], background: Values) -> tuple[float, float]:
    """Threshold and slope of the none mass.

    `novelty` has values of texts that belong to the bank, by way ("plain" and others), `keep` the share of each
    that must stay below the threshold. Where texts are known that do not belong (`background`, may be empty), the
    threshold may be lower, down to LEAST_KEPT of the plain ones: where it does least wrong to both.

    The slope gives the median plain text a none mass of one in a hundred million: steep, because a text that belongs
    should keep its whole confidence until it is close to the threshold.
    """
    threshold = max(float(np.quantile(novelty[way], share)) for way, share in keep.items())
    if len(background):
        lowest = min(threshold, float(np.quantile(novelty["plain"], LEAST_KEPT)))
        candidates = np.linspace(threshold, lowest, 65)
        wrong = [(novelty["plain"] > t).mean() + (background <= t).mean() for t in candidates]
        threshold = float(candidates[int(np.argmin(wrong))])
    distance = max(threshold - float(np.median(novelty["plain"])), 1e-3)
    return threshold, float(np.log(1e8) / distance)


def expected_calibration_error(confidence: Values, correct: NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean over equal-width bins of |accuracy - confidence|, weighted by how many texts fall in (Guo et al. 2017)."""
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=confidence, minlength=bins) - np.bincount(which, weights=correct, minlength=bins)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def auroc(known: Values, unknown: Values) -> float:
    """Chance that an unknown text scores above a known one, ties counting half (the Mann-Whitney statistic)."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left") + np.searchsorted(ordered, unknown, side="right")
    return float(below.mean() / (2 * len(known)))
