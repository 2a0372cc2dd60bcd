"""Requests as users might send them: when they arrive, how long they are, which adapters they want.

Arrivals are a renewal process: independent times between them, from a Gamma distribution with a given coefficient of
variation (standard deviation over mean). 1 makes it the Poisson process; above 1 arrivals come in bursts. Lengths are
log-normal within bounds. Adapters are drawn by Zipf's law: the n-th most popular one with a weight of 1 / n^s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Lengths(NamedTuple):
    """In tokens. `sigma` is that of the logarithm."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        drawn = random.lognormal(np.log(self.median), self.sigma, count)
        return [int(length) for length in np.clip(np.rint(drawn), self.least, self.most)]


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `at` is in seconds from its start, `seed` what its adapters are drawn by."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    seed: int

    def adapters(self, k: int, of: int, zipf: float) -> list[int]:
        """Which k of so many adapters it wants, all different; 0 is the most popular one."""
        random = np.random.default_rng(self.seed)
        return [int(number) for number in random.choice(of, k, replace=False, p=popularity(of, zipf))]


def popularity(adapters: int, zipf: float) -> NDArray[np.float64]:
    """Share of each adapter, the most popular one first."""
    weights = 1 / np.arange(1, adapters + 1) ** zipf
    return weights / weights.sum()


def arrivals(rate: float, seconds: float, *, cv: float, seed: int) -> list[float]:
    """Times of arrivals, `rate` a second, until `seconds` have passed. The same seed gives the same times, and another
    rate the same pattern, stretched."""
    random = np.random.default_rng(seed)
    shape = 1 / cv**2
    times: list[float] = []
    now = random.gamma(shape) / shape / rate
    while now < seconds:
        times.append(now)
        now += random.gamma(shape) / shape / rate
    return times


def trace(rate: float, seconds: float, *, cv: float, prompt: Lengths, answer: Lengths, seed: int) -> list[Request]:
    """The requests of so many seconds."""
    times = arrivals(rate, seconds, cv=cv, seed=seed)
    random = np.random.default_rng([seed, 1])
    prompts, answers = prompt.draw(random, len(times)), answer.draw(random, len(times))
    seeds = random.integers(2**32, size=len(times)).tolist()
    return [Request(*fields) for fields in zip(times, prompts, answers, seeds, strict=True)]
