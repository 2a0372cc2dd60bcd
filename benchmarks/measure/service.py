"""Service metrics of a run: time to the first token, time between tokens, and goodput.

Goodput is the rate of requests that met both bounds of a service level objective, as DistServe (arXiv 2401.09670) and
vLLM's benchmarks define it: time to the first token, and a request's mean time per token after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Answer:
    """One request. `due` is when it had to be sent, `pieces` when each piece of its answer arrived; seconds."""

    due: float
    pieces: tuple[float, ...]
    tokens: int

    @property
    def first_token(self) -> float:
        """Seconds from when the request was due, so that a late client does not make the server look faster."""
        return self.pieces[0] - self.due

    @property
    def gaps(self) -> list[float]:
        return np.diff(self.pieces).tolist()

    @property
    def per_token(self) -> float:
        """Mean seconds per token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)


class Objective(NamedTuple):
    """Service level objective: upper bounds in seconds."""

    first_token: float
    per_token: float

    def is_met_by(self, answer: Answer) -> bool:
        return answer.first_token <= self.first_token and answer.per_token <= self.per_token


class Summary(NamedTuple):
    """Metrics of one run, in seconds. Rates are over the time from its start to the last token."""

    first_token_p50: float
    first_token_p99: float
    gap_p50: float
    gap_p99: float
    requests_per_s: float
    tokens_per_s: float
    goodput: float
    met_share: float
    """Share of the requests that met the objective."""


def summarise(answers: Sequence[Answer], objective: Objective) -> Summary:
    """Metrics of the answers of one run, which started at 0."""
    seconds = max(answer.pieces[-1] for answer in answers)
    met = sum(map(objective.is_met_by, answers))
    return Summary(
        *percentiles([answer.first_token for answer in answers]),
        *percentiles([gap for answer in answers for gap in answer.gaps]),
        requests_per_s=len(answers) / seconds,
        tokens_per_s=sum(answer.tokens for answer in answers) / seconds,
        goodput=met / seconds,
        met_share=met / len(answers),
    )


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 50th and 99th percentile; zeros if there are no values."""
    if not values:
        return 0.0, 0.0
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99)
