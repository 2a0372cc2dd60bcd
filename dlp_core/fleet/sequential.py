"""Evidence that a bad event is likelier under a canary than under the bank that serves, at any time it is looked at.

Each request, or each user, gets the canary with probability `share`, by chance alone. If the canary is no worse, each
bad event (an error, say) is then the canary's with probability `share` at most, whatever the events' rate is, however
it changes with the hour and however the events depend on each other. A canary in which they are k times as frequent
has them with probability share * k / (1 - share + share * k). The evidence is the likelihood ratio of the two, mixed
over FACTORS:

    e(s, c) = mean over k of  k^c / (1 - share + share * k)^(s + c)      s events under serving, c under the canary

It is a test martingale: of a canary that is no worse, it ever reaches 1 / alpha with probability alpha at most (Ville;
Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference"). So it may be
looked at after each event and the test stopped at any time, and it depends on the two counts alone, so counts of
several replicas add up. What was counted before the canary began, or of requests that chose their version, must not go
in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""How many times as frequent bad events may be."""


def log_evidence(serving: int, canary: int, share: float) -> float:
    """The natural logarithm of e(s, c), for a `share` between 0 and 1; 0 without an event."""
    return log_mean_exp(
        canary * math.log(factor) - (serving + canary) * math.log1p(share * (factor - 1)) for factor in FACTORS
    )


def log_mean_exp(logs: Iterable[float]) -> float:
    """The logarithm of the mean of e to these powers. The mean of evidence for several signals is evidence too."""
    values = list(logs)
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))
