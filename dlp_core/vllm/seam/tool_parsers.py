"""Calls of tools, found by vLLM's tool parsers as its own server has them do it, in the replica's process.

    auto                a parser finds the calls in the text, in the format that its model writes
    required, by name   the answer is held to a JSON document of the functions' schemas, whatever the model's format

A parser streams what it can. What it holds back or misses (arguments that are empty, calls that arrive together, a
marker that never became one) follows at the end, when the text is read once more, as an answer is that nobody streams.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.parser import ParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tokenizers.hf import get_cached_tokenizer
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.streaming import extract_required_tool_call_streaming
from vllm.tool_parsers.utils import get_json_schema_from_tools

from dlp_core.errors import DLPError, InvalidRequest
from dlp_core.text.tools import CallDelta, CallReader, Read, Tools

log = logging.getLogger(__name__)


class ToolParsers:
    """The readers of one model's answers (dlp_core.text.tools.CallReaders), by a parser of vLLM."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises InvalidRequest for a parser that vLLM does not have, or that does not go with the tokenizer."""
        known = {*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers}
        if name not in known:
            raise InvalidRequest(
                f"engine setting vllm.tool_parser is {name!r}; this vLLM has {', '.join(sorted(known))}"
            )
        self._name = name
        self._tokenizer = get_cached_tokenizer(tokenizer)
        try:
            self._parser = ParserManager.get_parser(name, enable_auto_tools=True, tokenizer=self._tokenizer)
        except Exception as error:  # whatever a parser raises whose tokens are missing
            raise InvalidRequest(
                f"engine setting vllm.tool_parser is {name!r}, which is not this model's: {error.__cause__ or error}"
            ) from error

    def reader(self, tools: Tools, prompt_ids: Sequence[int], *, stream: bool) -> CallReader:
        request = _request(tools)
        if tools.choice == "required":
            return _Forced(_schema(request, parallel=tools.parallel), tools.only, stream=stream)

        def parser() -> Any:
            made = self._parser(self._tokenizer, request.tools)
            made.set_prompt_token_ids(list(prompt_ids))
            return made

        return _Free(self._name, parser, request, list(prompt_ids), parallel=tools.parallel, stream=stream)


class _Forced:
    """Reads a JSON document: the arguments of the function `only`, or a list of calls."""

    special_tokens = False

    def __init__(self, schema: str, only: str | None, *, stream: bool) -> None:
        self.schema = schema
        self._only = only
        self._stream = stream
        self._text = ""
        self._sent = 0

    def push(self, text: str, token_ids: Sequence[int]) -> Read:
        self._text += text
        return self._new() if self._stream else Read()

    def finish(self) -> Read:
        return self._new()

    def _new(self) -> Read:
        sent, self._sent = self._sent, len(self._text)
        if sent == len(self._text):
            return Read()
        if self._only is not None:
            first = {} if sent else {"id": make_tool_call_id(), "name": self._only}
            return Read(calls=(CallDelta(0, self._text[sent:], **first),))
        delta, _ = extract_required_tool_call_streaming(
            previous_text=self._text[:sent], current_text=self._text, tool_call_idx=None, tool_call_id_type="random"
        )
        return Read(calls=() if delta is None else tuple(map(_part, delta.tool_calls)))


class _Free:
    """Reads text in which a parser finds the calls."""

    schema = None

    def __init__(
        self,
        name: str,
        parser: Callable[[], Any],
        request: ChatCompletionRequest,
        prompt_ids: list[int],
        *,
        parallel: bool,
        stream: bool,
    ) -> None:
        self._name = name
        self._make = parser
        self._parser = parser()
        self._request = self._parser.adjust_request(request)
        self.special_tokens = not self._request.skip_special_tokens
        self._prompt_ids = prompt_ids
        self._most = None if parallel else 1
        self._stream = stream
        self._text = ""
        self._ids: list[int] = []
        self._sent = ""
        self._arguments: list[str] = []
        """Those sent so far, of each call."""

    def push(self, text: str, token_ids: Sequence[int]) -> Read:
        self._text += text
        self._ids += token_ids
        if not self._stream or not (text or token_ids):
            return Read()
        return self._accepted(self._parsed(text, token_ids, finished=False))

    def finish(self) -> Read:
        held = self._accepted(self._parsed("", (), finished=True)) if self._stream else Read()
        rest = self._rest()
        return Read(held.text + rest.text, held.calls + rest.calls)

    def _parsed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Any:
        try:
            return self._parser.parse_delta(text, list(token_ids), self._request, self._prompt_ids, finished=finished)
        except Exception as error:
            raise self._failed(error) from error

    def _accepted(self, delta: Any) -> Read:
        """What of a delta is sent."""
        if delta is None:
            return Read()
        parts = [part for call in delta.tool_calls if (part := self._following(_part(call))) is not None]
        text = (delta.reasoning or "") + (delta.content or "")
        self._sent += text
        return Read(text, tuple(parts))

    def _following(self, part: CallDelta) -> CallDelta | None:
        """The part, if it begins the next call or goes on with one that has begun."""
        if part.index == len(self._arguments) and part.index != self._most and part.name is not None:
            self._arguments.append(part.arguments)
            return replace(part, id=part.id or make_tool_call_id())
        if part.index < len(self._arguments) and part.arguments:
            self._arguments[part.index] += part.arguments
            return CallDelta(part.index, part.arguments)
        return None

    def _rest(self) -> Read:
        """What the whole text has beyond what was sent. What was sent as calls stays calls."""
        try:
            reasoning, content, calls = self._make().parse(
                self._text, self._request, enable_auto_tools=True, model_output_token_ids=self._ids
            )
        except Exception as error:
            raise self._failed(error) from error
        text = (reasoning or "") + (content or "")
        if not text.startswith(self._sent) or (self._arguments and not calls):
            text = self._sent
        begun = len(self._arguments)
        parts = [
            CallDelta(index, call.arguments, call.id, call.name)
            if index >= begun
            else CallDelta(index, _beyond(call.arguments, self._arguments[index]))
            for index, call in enumerate(calls or ())
        ]
        sent = tuple(found for part in parts if (found := self._following(part)) is not None)
        return Read(text[len(self._sent) :], sent)

    def _failed(self, error: Exception) -> DLPError:
        log.error("tool parser %s failed on an answer of %d characters", self._name, len(self._text), exc_info=error)
        return DLPError(
            f"tool parser {self._name} failed on the model's answer: {error}; try again, or leave out tools"
        )


def _request(tools: Tools) -> ChatCompletionRequest:
    """The request as vLLM's server has it, without what nobody parses by and what makes it use grammars of its own."""
    named = tools.only and {"type": "function", "function": {"name": tools.only}}
    functions = [{key: value for key, value in tool["function"].items() if key != "strict"} for tool in tools.schemas]
    return ChatCompletionRequest(
        messages=[],
        tools=[{"type": "function", "function": function} for function in functions],
        tool_choice=named or tools.choice,
    )


def _schema(request: ChatCompletionRequest, *, parallel: bool) -> str:
    """What an answer that must call is held to. Raises InvalidRequest for schemas that cannot be put together."""
    try:
        schema: Any = get_json_schema_from_tools(request.tool_choice, request.tools, parallel)
    except VLLMValidationError as error:
        raise InvalidRequest(f"tools: {error}", param="tools") from error
    if request.tool_choice == "required":
        for call in schema["items"]["anyOf"]:
            call["additionalProperties"] = False  # or a model may write on and on beside name and parameters
    return json.dumps(schema)


def _part(call: Any) -> CallDelta:
    function = call.function
    return CallDelta(call.index, (function and function.arguments) or "", call.id, function and function.name)


def _beyond(arguments: str, sent: str) -> str:
    """What is missing of arguments, unless the model has spaced them in another way than they are written here."""
    return arguments[len(sent) :] if arguments.startswith(sent) else ""
