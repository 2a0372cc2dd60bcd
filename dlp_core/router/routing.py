"""What the router says about one text. No numpy, no torch: it travels from the router's process to the ingress."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, select_top_p

NONE_DECISION = 0.5
"""The router fits `Routing.none` so that its decision lies here: from this mass on, no adapter fits."""

_DECIMALS = 4
"""What of a probability decides a mix. A batch changes the last bits of a matrix product; the same text shall
nevertheless get the same mix, alone and beside others."""
_LEAST = 10**-_DECIMALS / 2


@dataclass(frozen=True, slots=True)
class Routing:
    """Probabilities of one text. Filled by Router.route. Picklable, and small: a bank may have a thousand adapters."""

    labels: tuple[str, ...]
    """The adapters, in bank order."""
    masses: array[float]
    """Of each adapter; with `none` they sum to 1."""
    none: float
    """Mass of "none of these": the text looks like nothing the bank was trained for."""

    @classmethod
    def of(cls, probabilities: Mapping[str, float], *, none: float) -> Routing:
        return cls(tuple(probabilities), array("d", probabilities.values()), none)

    @property
    def probabilities(self) -> dict[str, float]:
        """Of every adapter, in bank order."""
        return dict(zip(self.labels, self.masses, strict=True))

    @property
    def confidence(self) -> float:
        """The highest probability of one adapter. Calibrated: of the texts with 0.8, about 80% belong to it."""
        return max(self.masses)

    @property
    def best(self) -> str:
        """The likeliest adapter, whether or not it fits well enough to serve."""
        return self.labels[self.masses.index(self.confidence)]

    @property
    def fits(self) -> bool:
        """Whether it is not "none of these"."""
        return self.none < NONE_DECISION

    def mix(self, *, top_p: float = 0.9, max_adapters: int = 3, weights: WeightRule = "renormalise") -> Mix:
        """The adapters that serve this text (see select_top_p); EMPTY_MIX where none fits.

        Raises InvalidRequest if top_p is not in (0, 1] or max_adapters is below 1.
        """
        known = zip(self.labels, self.masses, strict=True)
        probabilities = {name: round(p, _DECIMALS) for name, p in known if p >= _LEAST}
        mix = select_top_p(probabilities, top_p=top_p, max_adapters=max_adapters, weights=weights)
        return mix if self.fits else EMPTY_MIX
