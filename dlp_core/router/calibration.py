"""Calibrates the router's probabilities, on rows the network was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.network import Floats, softmax

Values = NDArray[np.floating]

MIN_KEPT = 0.985
"""Fraction of the plain texts that the threshold must keep, whatever the background texts."""

_TEMPERATURES = np.geomspace(0.1, 4.0, 161).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperatures divide the logits; novelty x gives P(none of these) = sigmoid(slope * (x - threshold)).

    Texts that join two tasks have their own temperature: in a bag of features the longer part dominates the shorter
    one, which makes the network overconfident.
    """

    temperature: float
    joined_temperature: float
    threshold: float
    slope: float

    def probabilities(self, logits_BN: Floats, joined_B: NDArray[np.bool_]) -> Floats:
        """Calibrated distribution over the adapters, (B, N)."""
        return softmax(self.scale_logits(logits_BN, joined_B))

    def scale_logits(self, logits_BN: Floats, joined_B: NDArray[np.bool_]) -> Floats:
        """The logits over their temperature: those of `probabilities`, (B, N)."""
        temperatures = np.array([self.temperature, self.joined_temperature], np.float32)
        scaled: Floats = logits_BN / temperatures[joined_B.view(np.int8), None]
        return scaled

    def none_probability(self, novelty_B: Floats) -> Floats:
        """P(none of these), (B,)."""
        half = np.float32(0.5)  # the logistic function as a tanh, which cannot overflow
        probability: Floats = half + half * np.tanh(half * self.none_log_odds(novelty_B))
        return probability

    def none_log_odds(self, novelty_B: Floats) -> Floats:
        """Log-odds of "none of these", (B,)."""
        log_odds: Floats = np.float32(self.slope) * (novelty_B - np.float32(self.threshold))
        return log_odds


def fit_temperature(logits_BN: Floats, tasks_B: NDArray[np.integer]) -> float:
    """The temperature at which mean confidence equals accuracy.

    Minimising cross-entropy instead (Guo et al. 2017, arXiv 1706.04599) would let a few outliers make all other texts
    uncertain. Half a wrong answer is added, because a few rows that are all correct would lead to temperature 0.
    """
    correct = int((logits_BN.argmax(axis=1) == tasks_B).sum())
    accuracy = (correct + 0.5) / (len(tasks_B) + 1)
    confidences = np.array([softmax(logits_BN / t).max(axis=1).mean() for t in _TEMPERATURES])
    return float(_TEMPERATURES[np.abs(confidences - accuracy).argmin()])


def fit_joined_temperature(logits_BN: Floats, targets_BN: Floats) -> float:
    """The temperature that minimises the cross-entropy to the target shares of two tasks."""
    losses = [-(targets_BN * np.log(softmax(logits_BN / t) + 1e-9)).sum(axis=1).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def fit_none(novelty: dict[str, Values], keep: dict[str, float], background: Values) -> tuple[float, float]:
    """Fit threshold and slope of P(none of these).

    `novelty` holds values of in-scope texts by kind ("plain" and others), `keep` the fraction of each kind that must
    stay below the threshold. Given out-of-scope texts (`background`, may be empty), the threshold may be lower, down to
    keeping MIN_KEPT of the plain texts: where the errors on both sides are fewest.

    The slope gives the median plain text a P(none of these) of one in a hundred million: it is steep, because an
    in-scope text should keep its full confidence until it is close to the threshold.
    """
    threshold = max(float(np.quantile(novelty[kind], fraction)) for kind, fraction in keep.items())
    if len(background):
        lowest = min(threshold, float(np.quantile(novelty["plain"], MIN_KEPT)))
        candidates = np.linspace(threshold, lowest, 65)
        errors = [(novelty["plain"] > t).mean() + (background <= t).mean() for t in candidates]
        threshold = float(candidates[int(np.argmin(errors))])
    distance = max(threshold - float(np.median(novelty["plain"])), 1e-3)
    return threshold, float(np.log(1e8) / distance)


def expected_calibration_error(confidence: Values, correct: NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean over equal-width bins of |accuracy - confidence|, weighted by the texts in each bin (Guo et al. 2017)."""
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence, minlength=bins) - np.bincount(
        bin_of, weights=correct, minlength=bins
    )
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def auroc(known: Values, unknown: Values) -> float:
    """Probability that an unknown text scores above a known one, ties counting half (the Mann-Whitney statistic)."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left") + np.searchsorted(ordered, unknown, side="right")
    return float(below.mean() / (2 * len(known)))
