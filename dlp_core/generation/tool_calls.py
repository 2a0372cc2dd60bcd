"""Calls of tools in an answer, on its way from tokens to pieces. What finds them in the text belongs to the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dlp_core.engine.request import FinishReason
from dlp_core.errors import InvalidRequest
from dlp_core.generation.messages import EndReason
from dlp_core.text.codec import TextStream
from dlp_core.text.tools import CallDelta, CallReader, CallReaders, Read, Tools


class PlainReader:
    """The reader of an answer that has no calls: all of its text is text."""

    special_tokens = False
    schema = None

    def push(self, text: str, token_ids: Sequence[int]) -> Read:
        return Read(text)

    def finish(self) -> Read:
        return Read()


class ReadStream:
    """The text of a completion as it comes, and the calls that a reader finds in it."""

    def __init__(self, text: TextStream, reader: CallReader) -> None:
        self._text = text
        self._reader = reader
        self._called = False

    def push(self, token_ids: Sequence[int]) -> Read:
        """Read tokens, up to a stop string. One by one: what is found does not depend on which arrive together."""
        reads = []
        for token_id in token_ids:
            reads.append(self._reader.push(self._text.push((token_id,)), (token_id,)))
            if self._text.stopped:
                break
        return self._joined(reads)

    def finish(self) -> Read:
        return self._joined([self._reader.push(self._text.finish(), ()), self._reader.finish()])

    def _joined(self, reads: Sequence[Read]) -> Read:
        if len(reads) == 1:
            [read] = reads
        else:
            calls: list[CallDelta] = [call for each in reads for call in each.calls]
            read = Read("".join(each.text for each in reads), tuple(calls))
        self._called = self._called or bool(read.calls)
        return read

    def end_reason(self, reason: FinishReason, tools: Tools | None) -> EndReason:
        """Why the answer ended. OpenAI's API says "stop" where the request has named the function itself."""
        return (
            "tool_calls" if self._called and reason == "stop" and tools is not None and tools.only is None else reason
        )


def check_tools(tools: Tools | None, readers: CallReaders | None) -> None:
    """Raise InvalidRequest for tools that may be called where nobody would find the calls."""
    if tools is not None and tools.choice != "none" and readers is None:
        raise InvalidRequest(
            "tools: this server does not find calls in its model's answers; run engine vllm with "
            "engine.vllm.tool_parser (docs/vllm.md), or send tool_choice: none",
            param="tools",
        )


@asynccontextmanager
async def named_as_tools(reader: CallReader) -> AsyncIterator[None]:
    """Where an answer must follow the schemas of tools, an error of the format is one of the tools."""
    try:
        yield
    except InvalidRequest as error:
        if reader.schema is None or error.param != "response_format":
            raise
        raise InvalidRequest(
            f"tools: this tool_choice makes the answer follow the functions' parameters as a {error.message}",
            param="tools",
        ) from error
