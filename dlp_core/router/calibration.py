"""What the router's numbers mean: calibrated probabilities, and how sure it must be that an adapter fits at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlp_core.errors import InvalidRequest
from dlp_core.mix import DEFAULT_TOP_P
from dlp_core.router.encoder import Floats
from dlp_core.router.network import softmax

Values = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature divides the logits; novelty x gives P(none of these) = sigmoid(slope * (x - threshold))."""

    temperature: float
    threshold: float
    slope: float
    top_p: float = DEFAULT_TOP_P
    """The share of the probability that a mix holds, unless a request says otherwise."""

    def probabilities(self, logits_BN: Floats) -> Floats:
        """Calibrated distribution over the adapters, given that one of them fits, (B, N)."""
        return softmax(self.scale_logits(logits_BN))

    def scale_logits(self, logits_BN: Floats) -> Floats:
        """The logits over the temperature: those of `probabilities`, (B, N)."""
        scaled: Floats = logits_BN / np.float32(self.temperature)
        return scaled

    def none_log_odds(self, novelty_B: Floats) -> Floats:
        """Log-odds of "none of these", (B,): 0 at the threshold."""
        log_odds: Floats = np.float32(self.slope) * (novelty_B - np.float32(self.threshold))
        return log_odds


@dataclass(frozen=True, slots=True)
class Curve:
    """What each threshold keeps and refuses, measured on rows held back from the training. Novelties ascend."""

    known: tuple[float, ...]
    """Novelty at the quantiles 0, 1/(n-1), ... 1 of the rows of the tasks."""
    unknown: tuple[float, ...]
    """The same for rows of no task."""
    auroc: float | None
    """Probability that a row of no task is more novel than one of a task; None without rows of no task."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Curve:
        """The inverse of dataclasses.asdict. Raises ValueError, TypeError or KeyError for anything else."""
        known, unknown = (tuple(map(float, content[name])) for name in ("known", "unknown"))
        for values in (known, unknown):
            if not np.isfinite(values).all() or list(values) != sorted(values):
                raise ValueError("the values of a curve must ascend")
        if len(known) < 2:
            raise ValueError("curve.known is empty")
        return cls(known, unknown, None if content["auroc"] is None else float(content["auroc"]))

    @classmethod
    def of(cls, known: Values, unknown: Values, *, size: int = 201) -> Curve:
        grid = np.linspace(0, 1, size)

        def quantiles(values: Values) -> tuple[float, ...]:
            return tuple(round(float(value), 4) for value in np.quantile(values, grid)) if len(values) else ()

        return cls(quantiles(known), quantiles(unknown), auroc(known, unknown) if len(unknown) else None)

    def threshold(self, keep: float) -> float:
        """The novelty below which this fraction of the known rows lies. Raises InvalidRequest outside (0, 1)."""
        if not 0 < keep < 1:
            raise InvalidRequest(f"keep must be between 0 and 1, not {keep:g}")
        return float(np.interp(keep, np.linspace(0, 1, len(self.known)), self.known))

    def kept(self, threshold: float) -> float:
        """Fraction of the known rows at or below a threshold."""
        return _share(self.known, threshold)

    def refused(self, threshold: float) -> float | None:
        """Fraction of the unknown rows above a threshold; None if there were none."""
        return 1 - _share(self.unknown, threshold) if self.unknown else None

    def default_threshold(self) -> float:
        """The threshold that lets in STRANGERS_IN of the unknown rows, as far as it keeps a fraction in KEPT of the
        known ones. Where there is a gap between known and unknown rows, it lies in the gap."""
        low, high = map(self.threshold, KEPT)
        if not self.unknown:
            return high
        strangers = float(np.interp(STRANGERS_IN, np.linspace(0, 1, len(self.unknown)), self.unknown))
        return max(low, min(strangers, high + GAP * max(strangers - high, 0.0)))

    def tune(self, calibration: Calibration, threshold: float) -> Calibration:
        """The calibration with this threshold."""
        distance = max(threshold - float(np.median(self.known)), 1e-3)
        return replace(calibration, threshold=threshold, slope=MEDIAN_LOG_ODDS / distance)


KEPT = (0.97, 0.995)
STRANGERS_IN = 0.035
"""Both are where the demo bank serves prompts written by hand best."""
GAP = 0.4
"""How far into a gap between known and unknown rows the default threshold lies."""
MEDIAN_LOG_ODDS = 9.2
"""Log-odds against "none of these" of the median known row, at any threshold. It sets the unit of the log-odds."""


def conformal_top_p(probabilities_BN: Floats, tasks_B: NDArray[np.integer], coverage: float, *, largest: int) -> float:
    """The smallest top-p at which mixes of at most `largest` adapters hold the right one with probability `coverage`,
    for texts like these calibration texts (split conformal prediction: Vovk et al. 2005; adaptive sets as in Romano et
    al. 2020, arXiv 2006.02544, without randomisation).

    Raises InvalidRequest if no top-p does.
    """
    order = np.argsort(-probabilities_BN, axis=1)
    rank = (order == tasks_B[:, None]).argmax(axis=1)
    mass = np.cumsum(np.take_along_axis(probabilities_BN, order, axis=1), axis=1)
    before = np.where(rank > 0, mass[np.arange(len(rank)), np.maximum(rank - 1, 0)], 0.0)
    needed = np.sort(np.where(rank < largest, before, np.inf))
    index = int(np.ceil((len(needed) + 1) * coverage)) - 1
    if not 0 < coverage < 1 or index >= len(needed) or not np.isfinite(needed[index]):
        within = float((rank < largest).mean())
        raise InvalidRequest(
            f"no mix of {largest} adapters holds the right one as often as {coverage:g}: of {len(needed):,} held-back "
            f"rows {within:.2%} have it among the {largest} likeliest; ask for less, or give more rows"
        )
    return float(min(1.0, max(needed[index] + 1e-4, MIN_TOP_P)))


MIN_TOP_P = 0.6
"""A prompt of two tasks has half of the probability on each: both must stay, however sure the router is of others."""


def fit_temperature(logits_BN: Floats, tasks_B: NDArray[np.integer]) -> float:
    """The temperature at which mean confidence equals accuracy.

    Minimising cross-entropy instead (Guo et al. 2017, arXiv 1706.04599) would let a few outliers make all other texts
    uncertain. Half a wrong answer is added, because a few rows that are all correct would lead to temperature 0.
    """
    correct = int((logits_BN.argmax(axis=1) == tasks_B).sum())
    accuracy = (correct + 0.5) / (len(tasks_B) + 1)
    confidences = np.array([softmax(logits_BN / t).max(axis=1).mean() for t in _TEMPERATURES])
    return float(_TEMPERATURES[np.abs(confidences - accuracy).argmin()])


_TEMPERATURES = np.geomspace(0.05, 4.0, 201).astype(np.float32)


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


def _share(quantiles: Sequence[float], threshold: float) -> float:
    """Fraction of the values at or below a threshold, from their quantiles."""
    return float(np.interp(threshold, quantiles, np.linspace(0, 1, len(quantiles))))
