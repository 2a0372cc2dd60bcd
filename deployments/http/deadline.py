"""One deadline for all the waiting a request does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from dlp_core.errors import DeadlineExceeded

Item = TypeVar("Item")


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """Cancels what waits inside when the event loop's clock passes `deadline`. Raises DeadlineExceeded then."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the request ran out of time; ask for fewer tokens, or retry when the server is less busy"
        ) from error


async def until(deadline: float, items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """Passes `items` on until `deadline`, and closes them whichever way this ends. Raises DeadlineExceeded."""
    async with aclosing(items):
        while True:
            try:
                async with before(deadline):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            yield item
