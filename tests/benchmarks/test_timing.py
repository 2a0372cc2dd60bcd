"""Interleaved timing and its statistics."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.measure.timing import Timing, abba, median_ratio, spread, time_interleaved


def test_sides_run_forward_and_backward() -> None:
    assert "".join(abba("abc", rounds=2)) == "abccbaabccba"


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_times() -> None:
    mine, base = Timing((2.0, 20.0, 3.0)), Timing((1.0, 10.0, 3.0))
    assert mine.ratio_to(base) == median_ratio(mine.seconds, base.seconds) == 2.0


def test_spread_is_half_the_distance_of_the_quartiles_over_the_median() -> None:
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.15)
    assert spread([5.0]) == spread([0.0, 0.0]) == 0.0


def test_every_turn_begins_with_an_untimed_call() -> None:
    calls: list[str] = []
    clocked: list[int] = []

    def clock(call: object, count: int) -> float:
        clocked.append(len(calls))
        return float(count)

    found = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=1, calls=7, clock=clock
    )
    assert "".join(calls) == "abba"
    assert clocked == [1, 2, 3, 4]
    assert found["a"].seconds == (7.0,)


def test_timing_needs_no_rich() -> None:
    code = "import sys; sys.modules['rich'] = None; import benchmarks.measure.timing"
    subprocess.run([sys.executable, "-c", code], check=True)
