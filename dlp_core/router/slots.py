"""Wordings and slots: how differently a task's rows are worded, and which of their words are values that vary.

Rows that were generated from a few templates teach a router the values in them as well, and the next prompt has others.
Rows are of one wording if they share most of their words; what a wording's rows share is its frame, and the rest are
slot values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from random import Random
from typing import Generic, TypeVar

_WORD = re.compile(r"\w+")
_SAMPLE = 200
"""Rows of a task that are looked at."""
_ALIKE = 0.5
"""Jaccard index of the words of two rows of one wording."""
_WORDING = 4
"""Rows that make a wording; others are worded freely."""
_FRAME, _FREE_FRAME = 0.6, 0.1
"""A word that this fraction of a wording's rows have belongs to its frame; and of rows that are worded freely."""
_SWAPPED = 2
"""Slot values of a text that `swap` replaces. More would leave nothing of prompts that people wrote freely."""
_MIN_ROWS = 16  # fewer rows tell nothing about how they were made
_FEW, _ENOUGH = 0.2, 40  # wordings per row, and wordings that are enough for any number of rows

Task = TypeVar("Task", bound=Hashable)


class Slots(Generic[Task]):
    """The words of each task's rows that are not slot values."""

    def __init__(self, texts_by_task: Mapping[Task, Sequence[str]]) -> None:
        self._frames = {task: _frame(texts) for task, texts in texts_by_task.items()}

    def swap(self, text: str, task: Task, values: Sequence[str], rng: Random) -> str:
        """Replace up to _SWAPPED slot values, chosen at random, by other `values`, capitalised as they were."""
        frame = self._frames[task]
        slots = [m for m in _WORD.finditer(text) if m.group().lower() not in frame and not m.group().isdecimal()]
        for match in sorted(rng.sample(slots, min(_SWAPPED, len(slots))), key=lambda match: -match.start()):
            word, value = match.group(), rng.choice(values)
            value = value.upper() if word.isupper() else value.capitalize() if word[0].isupper() else value
            text = text[: match.start()] + value + text[match.end() :]
        return text


def few_wordings(texts_by_task: Mapping[Task, Sequence[str]]) -> dict[Task, int]:
    """The tasks whose rows are few wordings with other values, and how many wordings they are."""
    found = {}
    for task, texts in texts_by_task.items():
        rows = _sample(texts)
        wordings = len(_wordings(rows))
        if len(rows) >= _MIN_ROWS and wordings < min(_FEW * len(rows), _ENOUGH):
            found[task] = wordings
    return found


def wording_warnings(texts_by_task: Mapping[Task, Sequence[str]]) -> tuple[str, ...]:
    """A line for each task whose rows are few wordings: what that means, and what to do."""
    return tuple(
        f"the {len(texts_by_task[task]):,} rows of {task!r} are {wordings} wording{'' if wordings == 1 else 's'} with "
        "other values, which show nothing of how it does on other wordings; add rows as people write them"
        for task, wordings in few_wordings(texts_by_task).items()
    )


def _frame(texts: Sequence[str]) -> frozenset[str]:
    frame: set[str] = set()
    free: list[frozenset[str]] = []
    for rows in _wordings(_sample(texts)):
        if len(rows) < _WORDING:
            free += rows
        else:
            frame |= _frequent(rows, _FRAME * len(rows))
    return frozenset(frame | _frequent(free, max(2.0, _FREE_FRAME * len(free))))


def _wordings(texts: Sequence[str]) -> list[list[frozenset[str]]]:
    """The words of the texts, those of one wording together: each text joins the first that its words are like."""
    wordings: list[list[frozenset[str]]] = []
    for text in texts:
        words = frozenset(match.group().lower() for match in _WORD.finditer(text))
        for rows in wordings:
            if len(words & rows[0]) >= _ALIKE * len(words | rows[0]):
                rows.append(words)
                break
        else:
            wordings.append([words])
    return wordings


def _frequent(rows: Sequence[frozenset[str]], at_least: float) -> set[str]:
    counts = Counter(word for words in rows for word in words)
    return {word for word, count in counts.items() if count >= at_least}


def _sample(texts: Sequence[str]) -> Sequence[str]:
    return texts[:: -(-len(texts) // _SAMPLE)] if texts else texts
