"""The response to one request, as one JSON object or as server-sent events.

generation 0 ─┐
generation 1 ─┼─> arrived ─> record ─> collect()  one JSON object
deadline     ─┘                     └> events()   server-sent events
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

from deployments.http.errors import as_api_error, error_body
from deployments.http.replies import Reply
from deployments.http.request_log import RequestRecord
from dlp_core.errors import DeadlineExceeded, DLPError
from dlp_core.generation.messages import Completion, Finished, Piece


class AnswerStream:
    """The pieces of a request's generations, merged as they arrive, until `deadline` on the event loop's clock.

    The first error of any generation ends the response. However it ends, `close` closes all generations.
    """

    def __init__(
        self,
        reply: Reply,
        generations: Sequence[AsyncGenerator[tuple[Piece, ...], None]],
        *,
        record: RequestRecord,
        deadline: float,
    ) -> None:
        self._reply = reply
        self._choices = len(generations)
        self._running = len(generations)
        self._record = record
        self._arrived: deque[tuple[int, tuple[Piece, ...]] | Exception] = deque()
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._drain(*numbered)) for numbered in enumerate(generations)]
        self._timer = asyncio.get_running_loop().call_at(deadline, self._put, timed_out())

    async def begin(self) -> None:
        """Wait for the first piece. Raises an early error, while a status and headers can still be sent."""
        try:
            await self._changed.wait()
            if isinstance(error := self._arrived[0], Exception):
                raise error
        except BaseException:  # a client that left meanwhile cancels this
            await self.close()
            raise

    async def collect(self) -> dict[str, Any]:
        """The response as one JSON object. Raises the first error of any generation, or DeadlineExceeded."""
        completions = [Completion() for _ in range(self._choices)]
        try:
            while (arrived := await self._next()) is not None:
                index, pieces = arrived
                for piece in pieces:
                    completions[index].add(piece)
        finally:
            await self.close()
        return self._reply.complete(completions)

    async def events(self) -> AsyncGenerator[str, None]:
        """The response as server-sent events, in one string if they arrived together. An error becomes the last event,
        without [DONE]."""
        finished: dict[int, Finished] = {}
        batch = [event(chunk) for chunk in self._reply.opening(self._choices)]
        try:
            while (arrived := await self._next()) is not None:
                index, pieces = arrived
                for piece in pieces:
                    if isinstance(piece, Finished):
                        finished[index] = piece
                        chunks = self._reply.ending(index, piece, self._in_order(finished))
                    else:
                        chunks = [self._reply.delta(index, piece)]
                    batch += [event(chunk) for chunk in chunks]
                if not self._arrived:
                    yield "".join(batch)
                    batch.clear()
            batch.append("data: [DONE]\n\n")
        except Exception as error:
            api_error = as_api_error(error)
            self._record.failed(api_error)
            batch.append(event(error_body(api_error)))
        finally:
            await self.close()
        yield "".join(batch)

    async def close(self) -> None:
        """End the generations that still run. Idempotent."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _in_order(self, finished: dict[int, Finished]) -> list[Finished] | None:
        """The ends of all choices in order; None until all have ended."""
        return [finished[index] for index in range(self._choices)] if len(finished) == self._choices else None

    async def _drain(self, index: int, generation: AsyncGenerator[tuple[Piece, ...], None]) -> None:
        finished = False
        try:
            async with aclosing(generation):
                async for pieces in generation:
                    finished = isinstance(pieces[-1], Finished)
                    self._put((index, pieces))
            if not finished:
                raise DLPError("the backbone ended a generation without a finish reason")
        except Exception as error:
            self._put(error)
        finally:
            self._running -= 1
            self._changed.set()

    def _put(self, item: tuple[int, tuple[Piece, ...]] | Exception) -> None:
        self._arrived.append(item)
        self._changed.set()

    async def _next(self) -> tuple[int, tuple[Piece, ...]] | None:
        """The next pieces of a choice with its index, noted in the record; None after the last."""
        while not self._arrived:
            if not self._running:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._arrived.popleft()
        if isinstance(item, Exception):
            raise item
        index, pieces = item
        for piece in pieces:
            self._record.arrived(index, piece)
        return item


class EventStream(StreamingResponse):
    """An AnswerStream as server-sent events. Closes it at the end, also if the client disconnects early."""

    media_type = "text/event-stream"

    def __init__(self, answer: AnswerStream, *, headers: dict[str, str]) -> None:
        super().__init__(answer.events(), headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._answer = answer

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await self._answer.close()


def event(data: dict[str, Any]) -> str:
    # ASCII escapes: some SSE parsers take a raw U+2028 in the text as the end of the line
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


@asynccontextmanager
async def within(deadline: float) -> AsyncIterator[None]:
    """Cancel the block and raise DeadlineExceeded when the event loop's clock passes `deadline`."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise timed_out() from error


def timed_out() -> DeadlineExceeded:
    return DeadlineExceeded("the request timed out; ask for fewer tokens, or retry when the server is less busy")
