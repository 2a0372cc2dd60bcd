"""One row of a suite: a question, its answer, and the task it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from dlp_core.eval.options import find_options


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One question with the answer wanted."""

    id: str
    """From its content: the same row has the same id in every suite."""
    task: str
    type: str
    input: str
    output: str

    @property
    def options(self) -> dict[str, str]:
        """Letter to text, of a multiple choice; empty for others."""
        return find_options(self.input)
