"""Interleaved timing and its statistics. Needs only the standard library, because a bare GPU machine has nothing else.

Sides run in turn, forward and backward (ABBA), so that drift affects all of them alike. A side's value is the median
over the rounds; a ratio is the median of the per-round ratios, which a noisy neighbour disturbs less than the ratio of
two medians.
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
    """One side: seconds per call, one value for each round."""

    seconds: tuple[float, ...]

    @property
    def ms(self) -> float:
        return 1000 * median(self.seconds)

    @property
    def spread(self) -> float:
        return spread(self.seconds)

    def ratio_to(self, base: Timing) -> float:
        return median_ratio(self.seconds, base.seconds)


def spread(values: Sequence[float]) -> float:
    """Half the interquartile range, divided by the median."""
    if len(values) < 2 or not median(values):
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the per-round ratios of `values` to `base`."""
    return median(value / base_value for value, base_value in zip(values, base, strict=True))


def abba(sides: Iterable[T], rounds: int = 1) -> Iterator[T]:
    """All sides forward and then backward, `rounds` times."""
    forward = list(sides)
    for _ in range(rounds):
        yield from forward
        yield from reversed(forward)


def host_clock(call: Call, calls: int) -> float:
    """Mean seconds per call over `calls` calls in a row, by the host's clock."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def time_interleaved(
    sides: Mapping[str, Call], *, rounds: int, calls: int, clock: Callable[[Call, int], float] = host_clock
) -> dict[str, Timing]:
    """Time `calls` calls of each side twice a round, each time after an untimed warm-up call: switching sides may cost
    setup that steady state does not. `clock` returns the mean seconds of consecutive calls."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        round_seconds = dict.fromkeys(sides, 0.0)
        for name in abba(sides):
            sides[name]()
            round_seconds[name] += clock(sides[name], calls) / 2
        for name, value in round_seconds.items():
            seconds[name].append(value)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def comparison_rows(timings: Mapping[str, Timing], base: str) -> list[dict[str, Any]]:
    """A row for each side: its time, its spread, and its ratio to `base`."""
    return [
        {
            "side": name,
            "ms": round(timing.ms, 2),
            "spread": round(timing.spread, 3),
            "ratio": round(timing.ratio_to(timings[base]), 3),
        }
        for name, timing in timings.items()
    ]
