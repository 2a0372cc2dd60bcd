"""A stream that takes too long is cut off, and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.http.deadline import until
from dlp_core.errors import DeadlineExceeded


async def test_a_deadline_closes_what_it_cuts_off() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(60)
            yield 2
        finally:
            closed.set()

    items = until(asyncio.get_running_loop().time() + 0.05, endless())
    assert await anext(items) == 1
    with pytest.raises(DeadlineExceeded):
        await anext(items)
    assert closed.is_set()
