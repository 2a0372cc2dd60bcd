"""A conversation, and what of it the router reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

FOLLOW_UP_CHARS = 120
"""A turn of at most this many characters may be a follow-up that says little without the turn before it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text."""

    role: Role
    content: str


def routing_texts(messages: Sequence[Message]) -> tuple[str, ...]:
    """What routes a conversation: texts in order, of which the first that fits an adapter decides.

        the last user turn                           what is asked now; it alone decides where it fits
        the user turn before it, and the last one    "and on weekends?", if the last one is that short
        the system prompt, and the last user turn    bare data under an instruction that stands in the system prompt

    So neither a long system prompt nor an earlier topic takes part where the user's own words fit. What the assistant
    said never does: it was written by an adapter, not for one. Where no user speaks, the last turn is the text.
    Raises ValueError if there is no message.
    """
    if not messages:
        raise ValueError("a conversation has at least one message")
    asked = [message.content for message in messages if message.role == "user"]
    if not asked:
        return (messages[-1].content,)
    texts = [asked[-1]]
    if len(asked) > 1 and len(asked[-1]) <= FOLLOW_UP_CHARS:
        texts.append(f"{asked[-2]}\n{asked[-1]}")
    system = "\n".join(message.content for message in messages if message.role == "system" and message.content.strip())
    if system:
        texts.append(f"{system}\n\n{asked[-1]}")
    return tuple(texts)
