"""Jobs on threads, with results and errors as if there were one."""

from __future__ import annotations

import threading
import time

import pytest

from dlp_core.bank.in_order import WORKERS, in_order
from tests.support.waiting import HANG_S


def test_results_come_in_the_order_of_the_jobs() -> None:
    def work(job: int) -> int:
        time.sleep(0.001 * (job % 3))
        return job * job

    assert list(in_order(work, range(40))) == [job * job for job in range(40)]
    assert list(in_order(work, [])) == []


def test_jobs_run_beside_each_other() -> None:
    barrier = threading.Barrier(WORKERS)
    assert list(in_order(lambda job: barrier.wait(HANG_S) >= 0, range(WORKERS))) == [True] * WORKERS


def test_the_first_error_in_order_is_raised_whichever_comes_first() -> None:
    failed = threading.Event()

    def work(job: int) -> int:
        if job == 2:
            assert failed.wait(HANG_S)
            raise ValueError("two")
        if job == 3:
            failed.set()
            raise ValueError("three")
        return job

    taken: list[int] = []
    with pytest.raises(ValueError, match="two"):
        taken.extend(in_order(work, range(1000)))
    assert taken == [0, 1]


def test_only_a_few_results_wait_to_be_taken() -> None:
    started: list[int] = []
    results = in_order(started.append, range(1000))
    next(results)
    time.sleep(0.05)
    assert len(started) <= WORKERS
    results.close()  # type: ignore[attr-defined]
    assert len(started) <= WORKERS
