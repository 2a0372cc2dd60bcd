"""The router's result for one text. No numpy, no torch: it is sent from the router's process to the ingress."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from dlp_core.mix import DEFAULT_TOP_P, EMPTY_MIX, Mix, WeightRule, select_top_p
from dlp_core.together import ANY, Together

NONE_THRESHOLD = 0.5
"""From this value of `Routing.none` on, no adapter fits. The router's threshold is where it reaches it."""

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
    """One for each of `labels`, given that one of them fits; together they sum to 1."""
    margin: float
    """By how much the text is above (positive) or below the router's threshold, as log-odds of fitting an adapter. The
    unit is such that half of the known texts are above 9.2; -50 for a text without visible characters."""
    top_p: float = DEFAULT_TOP_P
    """The router's own, for mixes that do not ask for another."""
    turn: int = 0
    """Which of the texts it was asked about decided: see Router.route_first."""

    @classmethod
    def of(cls, probabilities: Mapping[str, float], *, margin: float = 10.0) -> Routing:
        return cls(tuple(probabilities), array("d", probabilities.values()), margin)

    @property
    def probabilities(self) -> dict[str, float]:
        """Adapter name to probability, in bank order."""
        return dict(zip(self.labels, self.label_probabilities, strict=True))

    @property
    def confidence(self) -> float:
        """The highest probability of an adapter. Calibrated: of the texts at 0.8 that fit some adapter, about 80%
        belong to it. Whether one fits is another question; see `margin`."""
        return max(self.label_probabilities)

    @property
    def best(self) -> str:
        """The likeliest adapter, whether or not it fits well enough to serve the text."""
        return self.labels[self.label_probabilities.index(self.confidence)]

    @property
    def none(self) -> float:
        """The margin as a probability of "none of these": NONE_THRESHOLD at the threshold, 1 far below it."""
        return 0.5 - 0.5 * math.tanh(0.5 * self.margin)

    @property
    def fits(self) -> bool:
        """Whether some adapter fits, that is, the result is not "none of these"."""
        return self.margin > 0

    def mix(
        self,
        *,
        top_p: float | None = None,
        max_adapters: int = 3,
        weights: WeightRule = "renormalise",
        exact: bool = False,
        together: Together = ANY,
    ) -> Mix:
        """The adapters that serve this text (see select_top_p); EMPTY_MIX if none fits. Without `top_p`, the router's.
        Their weights are on the grid (Mix.on_grid) unless they are to be `exact`.

        Raises InvalidRequest if top_p is not in (0, 1] or max_adapters is below 1.
        """
        pairs = zip(self.labels, self.label_probabilities, strict=True)
        probabilities = {name: round(p, _DECIMALS) for name, p in pairs if p >= _MIN_PROBABILITY}
        mix = select_top_p(
            probabilities,
            top_p=self.top_p if top_p is None else top_p,
            max_adapters=max_adapters,
            weights=weights,
            together=together,
        )
        if not self.fits:
            return EMPTY_MIX
        return mix if exact else mix.on_grid()


@dataclass(frozen=True, slots=True)
class Passage:
    """text[start:end], which is about one task, and its routing. Filled by dlp_core/router/passages.py."""

    start: int
    end: int
    routing: Routing
