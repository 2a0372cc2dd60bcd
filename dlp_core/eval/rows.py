"""A row of a suite: a question, its answer and its task."""

from __future__ import annotations

from dataclasses import dataclass

from dlp_core.eval.options import find_options


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One question with its expected answer."""

    id: str
    """Derived from the content: the same row has the same id in every suite."""
    task: str
    type: str
    input: str
    output: str

    @property
    def options(self) -> dict[str, str]:
        """Options of a multiple-choice question, letter to text; empty for other questions."""
        return find_options(self.input)
