"""A conversation, and the part of it that the router reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

FOLLOW_UP_CHARS = 120
"""A turn of at most this many characters may be a follow-up that means little without the turn before it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text."""

    role: Role
    content: str


def routing_texts(messages: Sequence[Message]) -> tuple[str, ...]:
    """The texts that route a conversation, in order: the first that fits an adapter decides.

        the last user turn                           the current question; if it fits an adapter, it alone decides
        the user turn before it, and the last one    a follow-up ("and on weekends?"), if the last one is short enough
        the system prompt, and the last user turn    bare data whose instruction is in the system prompt

    So neither a long system prompt nor an earlier topic interferes if the user's own words fit an adapter. The
    assistant's turns never count: they were written by an adapter, not for one. Without a user turn, the last turn is
    the text. Raises ValueError if there is no message.
    """
    if not messages:
        raise ValueError("a conversation has at least one message")
    user_turns = [message.content for message in messages if message.role == "user"]
    if not user_turns:
        return (messages[-1].content,)
    texts = [user_turns[-1]]
    if len(user_turns) > 1 and len(user_turns[-1]) <= FOLLOW_UP_CHARS:
        texts.append(f"{user_turns[-2]}\n{user_turns[-1]}")
    system = "\n".join(message.content for message in messages if message.role == "system" and message.content.strip())
    if system:
        texts.append(f"{system}\n\n{user_turns[-1]}")
    return tuple(texts)
