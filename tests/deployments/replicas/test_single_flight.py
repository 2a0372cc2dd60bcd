"""One computation for all who ask for a key at the same time, and the newest values kept."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from deployments.replicas.single_flight import SingleFlight
from dlp_core.errors import StoreUnavailable
from tests.support.waiting import HANG_S, async_wait_for


async def test_those_who_ask_together_share_one_computation() -> None:
    calls: list[str] = []
    go = threading.Event()

    def compute(key: str) -> str:
        calls.append(key)
        assert go.wait(HANG_S)
        return key.upper()

    once = SingleFlight(compute, keep=2)
    waiters = [asyncio.create_task(once.get("a")) for _ in range(5)]
    await async_wait_for(lambda: calls, "computation")
    waiters[0].cancel()
    go.set()
    assert await asyncio.gather(*waiters[1:]) == ["A"] * 4
    assert await once.get("a") == "A"
    assert calls == ["a"]


async def test_a_failure_is_not_kept() -> None:
    answers: list[Any] = [StoreUnavailable("down"), "value"]

    def compute(_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    once = SingleFlight(compute, keep=2)
    with pytest.raises(StoreUnavailable, match="down"):
        await once.get("a")
    assert await once.get("a") == "value"


async def test_the_least_recently_used_value_goes_first() -> None:
    calls: list[str] = []
    once = SingleFlight(lambda key: calls.append(key) or key, keep=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert await once.get(key) == key
    assert calls == ["a", "b", "c", "b"]
