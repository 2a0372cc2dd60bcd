"""A model's chat template, and what it does with content: found out by rendering, not by reading it.

Some templates read a turn's content as a string, some as OpenAI's list of parts; the wrong one renders as nothing, and
the model would answer an empty turn. Some have no system role: they raise, or leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dlp_core.errors import AdapterRefused, DLPError, InvalidRequest
from dlp_core.text.chat import Message

_SYSTEM, _USER = Message("system", "probe-system"), Message("user", "probe-user")


Turn = dict[str, Any]
"""A message as templates see it: {"role", "content"}."""


class ChatTemplate:
    """Renders conversations. `apply` is the template itself: from turns to text, up to where the assistant's begins."""

    def __init__(self, apply: Callable[[list[Turn]], str]) -> None:
        self._template = apply

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant's turn begins.

        Raises InvalidRequest if the template rejects the turns (jinja2 may raise anything).
        """
        try:
            return self._apply(messages if self._has_system else _without_system(messages), parts=self._reads_parts)
        except DLPError:
            raise
        except Exception as error:
            raise InvalidRequest(f"the chat template rejects these messages: {error}", param="messages") from error

    def _apply(self, messages: Sequence[Message], *, parts: bool) -> str:
        return self._template(
            [{"role": message.role, "content": _content(message, parts=parts)} for message in messages]
        )

    @cached_property
    def _reads_parts(self) -> bool:
        return not self._shows(_USER, parts=False) and self._shows(_USER, parts=True)

    @cached_property
    def _has_system(self) -> bool:
        return self._shows(_SYSTEM, _USER, parts=self._reads_parts) or not self._shows(_USER, parts=self._reads_parts)

    def _shows(self, *messages: Message, parts: bool) -> bool:
        """Whether all of these messages' contents are in the text."""
        try:
            text = self._apply(messages, parts=parts)
        except AdapterRefused:
            raise
        except Exception:  # it rejects them, by whatever jinja2 raises
            return False
        return all(message.content in text for message in messages)


def _content(message: Message, *, parts: bool) -> Any:
    return [{"type": "text", "text": message.content}] if parts else message.content


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
