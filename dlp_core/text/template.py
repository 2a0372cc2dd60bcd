"""A model's chat template, and what it does with content and tools: found out by rendering, not by reading it.

Some templates read a turn's content as a string, some as OpenAI's list of parts; the wrong one renders as nothing, and
the model would answer an empty turn. Some have no system role: they raise, or leave it out. Many know nothing of tools,
and those that do read the arguments of a call as an object or as a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from dlp_core.errors import AdapterRefused, DLPError, InvalidRequest
from dlp_core.text.chat import Message
from dlp_core.text.tools import ToolCall

Turn = dict[str, Any]
"""A message as templates see it: {"role", "content"}, and maybe "tool_calls", "tool_call_id" and "name"."""

Schemas = Sequence[Mapping[str, Any]]
"""The functions that a conversation offers: see Tools."""

Arguments = Literal["object", "string"]
_FORMS: tuple[Arguments, ...] = ("object", "string")

_SYSTEM, _USER = Message("system", "probe-system"), Message("user", "probe-user")
_CALL = ToolCall("probe1234", "probe_function", '{"probe_argument": "probe-value"}')  # some want ids of 9 characters
_CALLED = (
    _USER,
    Message("assistant", "", tool_calls=(_CALL,)),
    Message("tool", "probe-result", tool_call_id=_CALL.id, name=_CALL.name),
)
_TOOL = {
    "type": "function",
    "function": {
        "name": _CALL.name,
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string", "description": "probe"}}},
    },
}


class ChatTemplate:
    """Renders conversations. `apply` is the template itself: from turns, the schemas of tools (None if there are none)
    and whether the assistant is to answer, to text, up to where that answer begins."""

    def __init__(self, apply: Callable[[list[Turn], Schemas | None, bool], str]) -> None:
        self._template = apply

    def render(self, messages: Sequence[Message], tools: Schemas | None = None) -> str:
        """The text of a conversation that offers `tools`, up to where the assistant's turn begins.

        Raises InvalidRequest if the template rejects the turns (jinja2 may raise anything), or leaves out tools, their
        calls or their results.
        """
        try:
            return self._render(messages, tools)
        except DLPError:
            raise
        except Exception as error:
            raise InvalidRequest(f"the chat template rejects these messages: {error}", param="messages") from error

    def _render(self, messages: Sequence[Message], tools: Schemas | None) -> str:
        calls = any(message.tool_calls for message in messages)
        if calls and self._arguments is None:
            raise _left_out("the calls of tools", "messages", "put what they say into the content")
        if any(message.role == "tool" for message in messages) and not self._shows_results:
            raise _left_out("the results of tools", "messages", "put them into a user turn")
        turns = turns_of(
            messages if self._has_system else _without_system(messages),
            parts=self._reads_parts,
            arguments=(self._arguments if calls else None) or "object",
        )
        text = self._template(turns, tools, True)
        if tools and text == self._tried(turns, None):
            raise _left_out("tools", "tools", "put what they are for into a system turn")
        return text

    @cached_property
    def user_opening(self) -> str:
        """What it writes before the words of a user's turn, such as `<|im_start|>user` and a new line: what comes
        between an assistant's words and them, without what ends the assistant's turn. Empty if that cannot be told."""
        done = [Message("user", "probe-question"), Message("assistant", "probe-answer")]
        ended, goes_on = (
            self._tried(turns_of(turns, parts=self._reads_parts), answer=False) for turns in (done, [*done, _USER])
        )
        closing = ended.partition("probe-answer")[2]
        between = goes_on.partition("probe-answer")[2].partition(_USER.content)[0]
        known = "probe-answer" in ended and _USER.content in goes_on and between.startswith(closing)
        return between[len(closing) :] if known else ""

    @cached_property
    def _reads_parts(self) -> bool:
        text, of_parts = (self._tried(turns_of([_USER], parts=parts)) for parts in (False, True))
        return _USER.content not in text and _USER.content in of_parts

    @cached_property
    def _has_system(self) -> bool:
        alone, both = (self._tried(turns_of(turns, parts=self._reads_parts)) for turns in ([_USER], [_SYSTEM, _USER]))
        return _USER.content not in alone or (_SYSTEM.content in both and _USER.content in both)

    @cached_property
    def _arguments(self) -> Arguments | None:
        """How it reads the arguments of calls; None if it leaves them out."""
        tried = {form: self._called(form) for form in _FORMS}
        for form, text in tried.items():
            if "probe-value" in text and "{'probe_argument': 'probe-value'" not in text:  # which is Python, not JSON
                return form
        return None if any(tried.values()) else "object"

    @cached_property
    def _shows_results(self) -> bool:
        text = self._called(self._arguments or "object")
        return not text or "probe-result" in text

    def _called(self, arguments: Arguments) -> str:
        return self._tried(turns_of(_CALLED, parts=self._reads_parts, arguments=arguments), [_TOOL])

    def _tried(self, turns: list[Turn], tools: Schemas | None = None, *, answer: bool = True) -> str:
        """What it makes of these turns; nothing if it rejects them, as it will say when it is to render them."""
        try:
            return self._template(turns, tools, answer)
        except AdapterRefused:
            raise
        except Exception:  # whatever jinja2 raises
            return ""


def turns_of(messages: Sequence[Message], *, parts: bool, arguments: Arguments = "object") -> list[Turn]:
    """The messages as templates read them, which is also how they came: contents as text or as parts, and arguments of
    calls as strings, or as objects where they are objects."""
    turns = []
    for message in messages:
        turn: Turn = {"role": message.role, "content": _content(message, parts=parts)}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, as_object=arguments != "string") for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            turn["name"] = message.name
        turns.append(turn)
    return turns


def _content(message: Message, *, parts: bool) -> Any:
    return [{"type": "text", "text": message.content}] if parts else message.content


def _call(call: ToolCall, *, as_object: bool) -> dict[str, Any]:
    """What is not an object was written by a model and stays what it is."""
    arguments: Any = call.arguments
    if as_object:
        with suppress(ValueError):
            arguments = json.loads(call.arguments or "{}")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _left_out(what: str, param: str, instead: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}: the chat template leaves out {what}, so the model would not know of them; {instead}, or ask a model "
        "or an adapter whose template has them",
        param=param,
    )


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """System turns put before the user turn that follows, as Gemma 3's own template does."""
    turns: list[Message] = []
    system: list[str] = []
    for message in messages:
        if message.role == "system":
            system.append(message.content)
        elif message.role == "user":
            turns.append(replace(message, content="\n\n".join([*system, message.content])))
            system.clear()
        else:
            turns.append(message)
    return [*turns, Message("user", "\n\n".join(system))] if system else turns
