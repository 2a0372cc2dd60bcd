"""The router's result for one text. No numpy, no torch: it is sent from the router's process to the ingress."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, select_top_p

NONE_THRESHOLD = 0.5
"""From this value of `Routing.none` on, no adapter fits. The router is calibrated to it."""

_DECIMALS = 4
"""Decimals of a probability that count for a mix. Batching changes the last bits of a matrix product, but a text must
get the same mix alone and in a batch."""
_MIN_PROBABILITY = 10**-_DECIMALS / 2


@dataclass(frozen=True, slots=True)
class Routing:
    """Probabilities of one text. Filled by Router.route. Picklable and compact: a bank may have a thousand adapters."""

    labels: tuple[str, ...]
    """The adapters, in bank order."""
    label_probabilities: array[float]
    """One for each of `labels`; together with `none` they sum to 1."""
    none: float
    """Probability of "none of these": the text resembles nothing the bank was trained for."""

    @classmethod
    def of(cls, probabilities: Mapping[str, float], *, none: float) -> Routing:
        return cls(tuple(probabilities), array("d", probabilities.values()), none)

    @property
    def probabilities(self) -> dict[str, float]:
        """Adapter name to probability, in bank order."""
        return dict(zip(self.labels, self.label_probabilities, strict=True))

    @property
    def confidence(self) -> float:
        """The highest probability of an adapter. Calibrated: of the texts at 0.8, about 80% belong to it."""
        return max(self.label_probabilities)

    @property
    def best(self) -> str:
        """The likeliest adapter, whether or not it fits well enough to serve the text."""
        return self.labels[self.label_probabilities.index(self.confidence)]

    @property
    def fits(self) -> bool:
        """Whether some adapter fits, that is, the result is not "none of these"."""
        return self.none < NONE_THRESHOLD

    def mix(self, *, top_p: float = 0.9, max_adapters: int = 3, weights: WeightRule = "renormalise") -> Mix:
        """The adapters that serve this text (see select_top_p); EMPTY_MIX if none fits.

        Raises InvalidRequest if top_p is not in (0, 1] or max_adapters is below 1.
        """
        pairs = zip(self.labels, self.label_probabilities, strict=True)
        probabilities = {name: round(p, _DECIMALS) for name, p in pairs if p >= _MIN_PROBABILITY}
        mix = select_top_p(probabilities, top_p=top_p, max_adapters=max_adapters, weights=weights)
        return mix if self.fits else EMPTY_MIX
