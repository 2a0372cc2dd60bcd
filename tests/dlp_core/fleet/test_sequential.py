"""The evidence: exact sums, without a random number."""

from __future__ import annotations

import math

import pytest

from dlp_core.fleet.sequential import FACTORS, log_evidence, log_mean_exp


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("worse", [False, True])
def test_of_a_canary_that_is_no_worse_the_expectation_is_one_at_any_count(share: float, worse: bool) -> None:
    """Each of n bad events is the canary's with probability `share`; more often, and the expectation grows."""
    hit = 1.2 * share if worse else share
    expectations = [
        sum(
            math.comb(n, c) * hit**c * (1 - hit) ** (n - c) * math.exp(log_evidence(n - c, c, share))
            for c in range(n + 1)
        )
        for n in (0, 1, 2, 10, 60)
    ]
    if worse:
        assert expectations == sorted(expectations)
        assert expectations[-1] > 1.2
    else:
        assert expectations == pytest.approx([1.0] * 5, rel=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_it_is_a_martingale(share: float) -> None:
    """After any counts, the next event leaves the expectation where it was."""
    for serving, canary in [(0, 0), (3, 0), (40, 2), (7, 30)]:
        now = math.exp(log_evidence(serving, canary, share))
        then = share * math.exp(log_evidence(serving, canary + 1, share)) + (1 - share) * math.exp(
            log_evidence(serving + 1, canary, share)
        )
        assert then == pytest.approx(now, rel=1e-9)


def test_a_canary_that_is_better_gives_no_evidence() -> None:
    assert log_evidence(100, 1, 0.2) < log_evidence(80, 20, 0.2) < 0 < log_evidence(60, 40, 0.2)


def test_counts_of_any_size_are_finite() -> None:
    assert math.isfinite(log_evidence(10**9, 10**9, 0.05))
    assert log_evidence(0, 10**6, 0.5) == pytest.approx(10**6 * math.log(100 / 50.5) - math.log(len(FACTORS)), rel=1e-6)


def test_the_mean_of_logarithms() -> None:
    assert log_mean_exp([0.0, 0.0]) == 0
    assert log_mean_exp([math.log(1), math.log(3)]) == pytest.approx(math.log(2))
    assert log_mean_exp([-5000.0, -5000.0]) == -5000
