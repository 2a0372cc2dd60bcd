"""Synthetic traffic follows its distributions, and service metrics match their definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.measure.service import Answer, Objective, percentiles, summarise
from benchmarks.measure.traffic import Lengths, Request, arrivals, popularity, trace

PROMPT, ANSWER = Lengths(48, 0.6, 8, 192), Lengths(16, 0.5, 4, 48)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_arrivals_have_their_rate_and_their_variation(cv: float) -> None:
    times = arrivals(10.0, 2000.0, cv=cv, seed=3)
    between = np.diff([0.0, *times])
    assert len(times) == pytest.approx(20_000, rel=0.05)
    assert between.std() / between.mean() == pytest.approx(cv, rel=0.05)
    assert max(times) < 2000.0


def test_another_rate_is_the_same_pattern_stretched() -> None:
    slow, fast = arrivals(1.0, 100.0, cv=2.0, seed=5), arrivals(10.0, 10.0, cv=2.0, seed=5)
    assert slow == pytest.approx([10 * time for time in fast])


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not() -> None:
    one, same, other = (trace(5.0, 20.0, cv=1.0, prompt=PROMPT, answer=ANSWER, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert [request.adapters(3, 100, 1.0) for request in one] == [request.adapters(3, 100, 1.0) for request in same]


def test_lengths_keep_to_their_median_and_bounds() -> None:
    drawn = PROMPT.draw(np.random.default_rng(1), 20_000)
    assert np.median(drawn) == pytest.approx(48, abs=1)
    assert (min(drawn), max(drawn)) == (8, 192)


@pytest.mark.slow
def test_adapters_are_drawn_by_zipf() -> None:
    counts = Counter(Request(0.0, 1, 1, seed).adapters(1, 20, 1.0)[0] for seed in range(20_000))
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.1)
    assert counts[0] / counts[3] == pytest.approx(4.0, rel=0.1)
    assert counts[0] / 20_000 == pytest.approx(popularity(20, 1.0)[0], rel=0.05)


def test_a_mix_names_no_adapter_twice() -> None:
    assert all(len(set(Request(0.0, 1, 1, seed).adapters(3, 4, 1.0))) == 3 for seed in range(200))


def test_times_count_from_when_a_request_was_due() -> None:
    answer = Answer(due=1.0, pieces=(1.5, 1.6, 1.9), tokens=3)
    assert answer.first_token == pytest.approx(0.5)
    assert answer.gaps == pytest.approx([0.1, 0.3])
    assert answer.per_token == pytest.approx(0.2)


def test_goodput_counts_requests_that_met_both_bounds() -> None:
    answers = [
        Answer(0.0, (0.1, 0.2), 2),
        Answer(0.0, (0.9, 1.0), 2),  # late
        Answer(0.0, (0.1, 0.6), 2),  # slow
        Answer(1.0, (1.1, 2.0), 10),  # many tokens in one piece are not slow
    ]
    found = summarise(answers, Objective(first_token=0.5, per_token=0.1))
    assert found.met_share == 0.5
    assert found.goodput == pytest.approx(1.0)
    assert found.requests_per_s == pytest.approx(2.0)
    assert found.tokens_per_s == pytest.approx(8.0)


def test_percentiles_of_known_values() -> None:
    assert percentiles(range(101)) == (50.0, 99.0)
    assert percentiles([]) == (0.0, 0.0)
