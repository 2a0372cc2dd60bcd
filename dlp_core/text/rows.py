"""Rows to train and evaluate with, in the shapes that datasets have. Every reader of rows goes through here.

    {"input": text, "output": text}                         and "instruction", which comes before the input
    {"messages": [{"role": ..., "content": ...}, ...]}      the assistant's last message is the output
    {"prompt": text or messages, "completion": text or messages}

The first of `input`, `messages`, `prompt` and `instruction` that a row has decides its shape. An output may be missing
where only prompts are wanted. The adapter that a row belongs to is its `task`, or its `adapter`: null where it fits
none. Other keys are ignored. dlp_core.store.tables says which files are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from dlp_core.adapter.names import validate_name
from dlp_core.errors import InvalidRequest
from dlp_core.store.tables import read_objects
from dlp_core.text.chat import Message, Role, joined, routing_texts
from dlp_core.text.tools import ToolCall

SHAPES = '"input" and "output", "prompt" and "completion", or "messages"'
"""What a row may have, for messages and help."""

TASK, ALIAS = "task", "adapter"

_ROLES = get_args(Role)
_KEYS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a prompt, and maybe its answer."""

    where: str
    """File and line."""
    turns: tuple[Message, ...]
    """The conversation up to the answer; a prompt that is a text is one user message."""
    output: str | None
    """The answer; None if the row has none."""
    record: Mapping[str, Any]
    """All that the row has."""

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """The user's message, if the conversation is nothing else."""
        [*before, last] = self.turns
        return self.turns if before or last.role != "user" else last.content

    @property
    def routing_texts(self) -> tuple[str, ...]:
        """The texts that a server would route this prompt by; the first is what a router learns."""
        return routing_texts(self.turns)

    @property
    def has_task(self) -> bool:
        return TASK in self.record or ALIAS in self.record

    @property
    def task(self) -> str | None:
        """The name of the adapter it belongs to; None if it names none. Raises InvalidRequest, naming the place, for
        what cannot be an adapter's name, and for two names."""
        names = [self.record[key] for key in (TASK, ALIAS) if key in self.record]
        if len(names) == 2 and names[0] != names[1]:
            raise InvalidRequest(f'{self.where}: "{TASK}" and "{ALIAS}" differ; keep one of them')
        if not names or names[0] is None:
            return None
        if not isinstance(names[0], str):
            raise InvalidRequest(f'{self.where}: "{TASK}" must be an adapter name or null')
        try:
            return validate_name(names[0])
        except InvalidRequest as error:
            raise InvalidRequest(f"{self.where}: {error.message}") from error

    def answered(self) -> tuple[str | tuple[Message, ...], str]:
        """The prompt and its answer: what follows the assistant's last message is left out. Raises InvalidRequest,
        naming the place, if either is missing or empty, and for tools, which are not rendered here."""
        answers = [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]
        if self.output is None and answers:
            turns, output = _split(self.turns[: answers[-1] + 1], self.where)
            return replace(self, turns=turns, output=output).answered()
        if self.output is None or not self.output.strip():
            raise InvalidRequest(f"{self.where}: the answer is missing or empty; a row has {SHAPES}")
        if self.record.get("tools"):
            raise InvalidRequest(f"{self.where}: tools are not rendered here; remove the row, or its tools")
        prompt = self.prompt
        if not (prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)).strip():
            raise InvalidRequest(f"{self.where}: the prompt is empty; add it or remove the row")
        return prompt, self.output


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Raises InvalidRequest, naming file and line, for a file that `read_objects` refuses, and for a row of another shape.
    """
    for where, record in read_objects(path):
        turns, output = _shaped(record, where)
        yield Row(where, turns, output, record)


def _shaped(record: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], str | None]:
    if record.get("input") is not None:
        instruction = _optional(record, "instruction", where)
        parts = [text for text in (instruction, _text(record, "input", where)) if text]
        return (Message("user", "\n\n".join(parts)),), _optional(record, "output", where)
    if record.get("messages") is not None:
        return _split(_messages(record["messages"], f"{where}: messages"), where)
    if record.get("prompt") is not None:
        return _prompted(record, where)
    if record.get("instruction") is not None:
        return (Message("user", _text(record, "instruction", where)),), _optional(record, "output", where)
    for key in ("input", "messages", "prompt"):
        if key in record:
            raise InvalidRequest(f'{where}: "{key}" is empty; add the prompt or remove the row')
    keys = [f'"{key}"' for key in record]
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else "")
    raise InvalidRequest(f"{where}: no prompt among the keys {shown or '(none)'}; a row has {SHAPES}")


def _prompted(record: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], str | None]:
    prompt, completion = record["prompt"], record.get("completion")
    turns = (Message("user", prompt),) if isinstance(prompt, str) else _messages(prompt, f"{where}: prompt")
    if isinstance(completion, Sequence) and not isinstance(completion, str):
        return _split((*turns, *_messages(completion, f"{where}: completion")), where)
    return turns, _optional(record, "completion", where)


def _split(messages: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], str | None]:
    """What comes before the assistant's last message, and that message; all of them if somebody else has the last."""
    *turns, last = messages
    if last.role != "assistant":
        return messages, None
    if last.tool_calls:
        raise InvalidRequest(f"{where}: the answer calls tools; only answers in words are read")
    if not turns:
        raise InvalidRequest(f"{where}: there is an answer and no prompt before it")
    return tuple(turns), last.content


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRequest(f'{where}: must be a list of {{"role": ..., "content": ...}}')
    return tuple(_message(message, f"{where}[{number}]") for number, message in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value:
        raise InvalidRequest(f'{where}: must be {{"role": ..., "content": ...}}')
    role: Any = "system" if value["role"] == "developer" else value["role"]
    if role not in _ROLES:
        raise InvalidRequest(f"{where}: role {str(role)[:40]!r} is none of {', '.join(_ROLES)}")
    content = value.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        try:
            content = joined(content)
        except ValueError as error:
            raise InvalidRequest(f"{where}: {error}") from None
    calls = tuple(_call(call, f"{where}.tool_calls") for call in value.get("tool_calls") or ())
    if not isinstance(content, str) and not (content is None and calls):
        raise InvalidRequest(f"{where}: content must be text")
    name, call_id = value.get("name"), value.get("tool_call_id")
    if role != "tool":
        return Message(role, content or "", calls)
    return Message(role, content or "", (), None if call_id is None else str(call_id), name and str(name))


def _call(value: object, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f'{where}: a call must be {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(value.get("id") or ""), function["name"], text)


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(record[key], str):
        raise InvalidRequest(f'{where}: "{key}" must be text')
    return str(record[key])


def _optional(record: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if record.get(key) is None else _text(record, key, where)
