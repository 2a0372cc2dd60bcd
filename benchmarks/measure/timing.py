"""How benchmarks take turns and what they make of the values. Needs nothing but Python: a bare GPU machine has no more.

Sides run in turn, forward and backward (ABBA), so that what drifts drifts for all of them. A side's value is the median
over the rounds; a ratio is the median of the rounds' own ratios, which a noisy neighbour moves less than two medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, TypeVar

T = TypeVar("T")

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """One side: seconds of one call, a value for each round."""

    seconds: tuple[float, ...]

    @property
    def ms(self) -> float:
        return 1000 * median(self.seconds)

    @property
    def spread(self) -> float:
        return spread(self.seconds)

    def over(self, other: Timing) -> float:
        return over(self.seconds, other.seconds)


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, over the median."""
    if len(values) < 2 or not median(values):
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def over(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return median(mine / its for mine, its in zip(values, base, strict=True))


def abba(sides: Iterable[T], rounds: int = 1) -> Iterator[T]:
    """All sides forward and then backward, so many times."""
    there = list(sides)
    for _ in range(rounds):
        yield from there
        yield from reversed(there)


def on_host(call: Call, calls: int) -> float:
    """Seconds of one call by this machine's clock."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def interleaved(
    sides: Mapping[str, Call], *, rounds: int, calls: int, clock: Callable[[Call, int], float] = on_host
) -> dict[str, Timing]:
    """Times `calls` calls of each side twice a round, each time after one that does not count: whatever a side has to
    set up when it takes over from another is not what it costs to go on. `clock` times calls in a row."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        found = dict.fromkeys(sides, 0.0)
        for name in abba(sides):
            sides[name]()
            found[name] += clock(sides[name], calls) / 2
        for name, value in found.items():
            seconds[name].append(value)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def compared(found: Mapping[str, Timing], base: str) -> list[dict[str, Any]]:
    """A row for each side: its time, its spread, and its ratio over `base`."""
    return [
        {
            "side": name,
            "ms": round(timing.ms, 2),
            "spread": round(timing.spread, 3),
            "ratio": round(timing.over(found[base]), 3),
        }
        for name, timing in found.items()
    ]
