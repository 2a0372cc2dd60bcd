"""What each adapter is worth on a row, as soft labels for a router.

    score  = log-likelihood of the right answer / its tokens
             + where the prompt lists options: log-probability of the right one among them
    gain   = score under the adapter - score of the plain backbone, in nats
    pooled = (PRIOR_ROWS * gain + n * mean gain of the n rows of its task) / (PRIOR_ROWS + n)
    share  = softmax(pooled / temperature), over the adapters that were asked
    fits   = sigmoid(sum(share * pooled) / temperature)
    label  = fits * share

- **Per token**, so that a long answer weighs no more than a short one. Most tokens of a multiple choice repeat an
  option, and any adapter that learnt to do so gains there; which option it is decides, so that is asked as well.
- **Pooled**, because one row's gain is mostly luck, and the next prompt of the task has other luck. A row without a
  task stands for itself.
- **Two parts**, as a router answers two questions: which adapter, given that one fits, and whether one does. `fits`
  is about the gain that the adapters, so weighted, would bring. A softmax with the backbone as one more choice would
  instead lower its part with every further adapter that is asked, though none of them helps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TEMPERATURE = 0.25
"""Nats: an adapter that alone gains as much gets 0.73, with twice as much 0.88; one that loses as much 0.27."""
PRIOR_ROWS = 5
"""With this many rows of its task, a row counts half for itself."""

_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Scores:
    """One row's right answer under the plain backbone and under adapters. Filled by labelling.label_rows."""

    tokens: int
    """Of the answer, with the end of the turn."""
    plain: float
    """Its natural log-likelihood under the backbone alone."""
    adapters: dict[str, float]
    """The same under each adapter."""
    plain_choice: float | None = None
    """The log-probability of the right option among all; None if the prompt lists none."""
    choices: dict[str, float] | None = None

    def gains(self) -> dict[str, float]:
        """By how much each adapter is better than the backbone, in nats."""
        base = self._score(self.plain, self.plain_choice)
        choices = self.choices or {}
        return {name: self._score(value, choices.get(name)) - base for name, value in self.adapters.items()}

    def _score(self, log_likelihood: float, choice: float | None) -> float:
        return log_likelihood / self.tokens + (choice or 0.0)


def pooled(gains: Sequence[Mapping[str, float]], tasks: Sequence[str | None]) -> list[dict[str, float]]:
    """The gains of each row, drawn towards the mean of its task's rows; None is no task."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, task in zip(gains, tasks, strict=True):
        if task is not None:
            for name, gain in row.items():
                values[task, name].append(gain)
    means = {key: (math.fsum(found), len(found)) for key, found in values.items()}

    def draw(task: str | None, name: str, gain: float) -> float:
        total, count = means.get((task, name), (0.0, 0)) if task is not None else (0.0, 0)
        return (PRIOR_ROWS * gain + total) / (PRIOR_ROWS + count)

    return [
        {name: draw(task, name, gain) for name, gain in row.items()} for row, task in zip(gains, tasks, strict=True)
    ]


def soft_labels(gains: Mapping[str, float], *, temperature: float = TEMPERATURE) -> dict[str, float]:
    """The probability that each adapter should serve a row with these gains; the rest, that none should."""
    if not gains:
        return {}
    best = max(gains.values())
    powers = {name: math.exp((gain - best) / temperature) for name, gain in gains.items()}
    total = math.fsum(powers.values())
    mean = math.fsum(power * gains[name] for name, power in powers.items()) / total
    fits = 0.5 + 0.5 * math.tanh(mean / temperature / 2)
    return {name: round(fits * power / total, _DECIMALS) for name, power in powers.items()}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """As they are written: what a batch's shape changes in the last bits is not shown."""
    return {name: round(value, _DECIMALS) for name, value in values.items()}
