"""A conversation, and the part of it that the router reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dlp_core.text.tools import ToolCall

Role = Literal["system", "user", "assistant", "tool"]

FOLLOW_UP_CHARS = 120
"""A turn of at most this many characters may be a follow-up that means little without the turn before it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text, empty if an assistant only calls tools."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant."""
    tool_call_id: str | None = None
    """Of a tool: the call that this is the result of."""
    name: str | None = None
    """Of a tool, if it is known: the function that was called."""


def joined(parts: Sequence[object]) -> str:
    """The text of a content that is OpenAI's list of parts. Raises ValueError, naming a part that is no text."""
    texts = []
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"part {index} is {kind!r}; only text parts are read")
        if not isinstance(part.get("text"), str):
            raise ValueError(f'part {index} must be {{"type": "text", "text": "..."}}')
        texts.append(part["text"])
    return "".join(texts)


def routing_texts(messages: Sequence[Message]) -> tuple[str, ...]:
    """The texts that route a conversation, in order: the first that fits an adapter decides.

        the last user turn                           the current question; if it fits an adapter, it alone decides
        the user turn before it, and the last one    a follow-up ("and on weekends?"), if the last one is short enough
        the last user turn, and tools' results       a question whose matter is in what was looked up for it
        the system prompt, and the last user turn    bare data whose instruction is in the system prompt

    So neither a long system prompt nor an earlier topic interferes if the user's own words fit an adapter. The
    assistant's turns never count: they were written by an adapter, not for one. Nor do the schemas of tools, which are
    the same whatever is asked. Without a user turn, the last turn is the text. Raises ValueError if there is no
    message.
    """
    if not messages:
        raise ValueError("a conversation has at least one message")
    user_turns = [number for number, message in enumerate(messages) if message.role == "user"]
    if not user_turns:
        return (messages[-1].content,)
    last = messages[user_turns[-1]].content
    texts = [last]
    if len(user_turns) > 1 and len(last) <= FOLLOW_UP_CHARS:
        texts.append(f"{messages[user_turns[-2]].content}\n{last}")
    results = "\n".join(_contents(messages[user_turns[-1] :], "tool"))
    if results:
        texts.append(f"{last}\n\n{results}")
    system = "\n".join(_contents(messages, "system"))
    if system:
        texts.append(f"{system}\n\n{last}")
    return tuple(texts)


def _contents(messages: Sequence[Message], role: Role) -> list[str]:
    return [message.content for message in messages if message.role == role and message.content.strip()]
