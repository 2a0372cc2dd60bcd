"""Waiting for what happens in its own time: for the event, never for a length of time.

How fast something happens is measured in benchmarks/. A test only has to end when it hangs, however busy the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

HANG_S = 120.0
"""Far more than anything here takes on a busy machine."""

Value = TypeVar("Value")


def wait_for(ready: Callable[[], Value], what: str, seconds: float = HANG_S) -> Value:
    """The first true value of `ready()`; the test fails when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(0.05)
    pytest.fail(f"no {what} within {seconds:g} s")


async def async_wait_for(ready: Callable[[], Value], what: str) -> Value:
    """`wait_for` while the event loop runs on. What is ready to run has run at least once when it returns."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        await asyncio.sleep(0.005)
        if value := ready():
            return value
    pytest.fail(f"no {what} within {HANG_S:g} s")
