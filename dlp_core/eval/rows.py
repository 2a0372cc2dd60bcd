"""A row of a suite: a question, its answer and its task."""

from __future__ import annotations

from dataclasses import dataclass

from dlp_core.eval.options import find_options
from dlp_core.text.chat import Message, routing_texts


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One question with its expected answer."""

    id: str
    """Derived from the content: the same row has the same id in every suite."""
    task: str
    type: str
    input: str
    output: str
    before: tuple[Message, ...] = ()
    """Turns of the conversation before the question, such as a system prompt."""

    @property
    def routing_texts(self) -> tuple[str, ...]:
        """What a server would route it by."""
        return routing_texts((*self.before, Message("user", self.input)))

    @property
    def options(self) -> dict[str, str]:
        """Options of a multiple-choice question, letter to text; empty for other questions."""
        return find_options(self.input)
