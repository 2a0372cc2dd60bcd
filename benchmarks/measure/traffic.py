"""Synthetic traffic: arrival times, lengths and adapters of requests.

Arrivals are a renewal process with independent, Gamma-distributed inter-arrival times of a given coefficient of
variation (standard deviation over mean): 1 is the Poisson process, above 1 arrivals are bursty. Lengths are log-normal
within bounds. Adapters follow Zipf's law: the n-th most popular has a weight of 1 / n^s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Lengths(NamedTuple):
    """A clipped log-normal distribution of lengths in tokens. `sigma` is the standard deviation of the logarithm."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        drawn = random.lognormal(np.log(self.median), self.sigma, count)
        return [int(length) for length in np.clip(np.rint(drawn), self.least, self.most)]


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `at` is in seconds from the trace's start; `seed` draws its adapters."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    seed: int

    def adapters(self, k: int, total: int, zipf: float) -> list[int]:
        """Draw k distinct adapters out of `total`; 0 is the most popular."""
        random = np.random.default_rng(self.seed)
        return [int(number) for number in random.choice(total, k, replace=False, p=popularity(total, zipf))]


def popularity(adapters: int, zipf: float) -> NDArray[np.float64]:
    """Probability of each adapter, the most popular first."""
    weights = 1 / np.arange(1, adapters + 1) ** zipf
    return weights / weights.sum()


def arrivals(rate: float, seconds: float, *, cv: float, seed: int) -> list[float]:
    """Arrival times in seconds, `rate` per second on average, up to `seconds`. The same seed gives the same times, and
    another rate gives the same pattern, stretched."""
    random = np.random.default_rng(seed)
    shape = 1 / cv**2
    times: list[float] = []
    now = random.gamma(shape) / shape / rate
    while now < seconds:
        times.append(now)
        now += random.gamma(shape) / shape / rate
    return times


def trace(rate: float, seconds: float, *, cv: float, prompt: Lengths, answer: Lengths, seed: int) -> list[Request]:
    """The requests of `seconds` seconds."""
    times = arrivals(rate, seconds, cv=cv, seed=seed)
    random = np.random.default_rng([seed, 1])
    prompts, answers = prompt.draw(random, len(times)), answer.draw(random, len(times))
    seeds = random.integers(2**32, size=len(times)).tolist()
    return [Request(*fields) for fields in zip(times, prompts, answers, seeds, strict=True)]
