"""A conversation, and which part of it the router reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text."""

    role: Role
    content: str


def routing_text(messages: Sequence[Message]) -> str:
    """The text the router sees: the last user turn, or the last turn where no user speaks.

    Earlier turns and the system prompt do not take part: the router is trained on single requests, and
    the adapter that fits is the one that fits what is asked now. Raises ValueError if there is no message.
    """
    if not messages:
        raise ValueError("a conversation has at least one message")
    for message in reversed(messages):
        if message.role == "user":
            return message.content
    return messages[-1].content
