"""The rows that a report shows with their answers: drawn by outcome, so that none is picked by hand.

Rows are grouped by how the judged arm (`judged_arm`) did beside the right adapter and the plain backbone. The groups
take turns; from each comes the row whose task was shown least so far, the first in an order drawn with the suite's
seed. So rare outcomes are shown more often than they occur, and every example says how many rows are like it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dlp_core.eval.arms import judged_arm
from dlp_core.eval.results import Example
from dlp_core.eval.rows import EvalRow

EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row and, by arm, what came out. See Example."""

    row: EvalRow
    answers: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    adapters: dict[str, list[str]] = field(default_factory=dict)


def choose_examples(candidates: Sequence[Candidate], *, seed: int, number: int = EXAMPLES) -> list[Example]:
    """Choose `number` rows, or all if there are fewer."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda candidate: _draw(seed, candidate.row.id)):
        groups[outcome(candidate.scores)].append(candidate)
    sizes = {name: len(rows) for name, rows in groups.items()}
    shown: Counter[str] = Counter()
    chosen: list[Example] = []
    while len(chosen) < number and any(groups.values()):
        for name in sorted(groups):
            if groups[name] and len(chosen) < number:
                candidate = min(groups[name], key=lambda candidate: shown[candidate.row.task])
                groups[name].remove(candidate)
                shown[candidate.row.task] += 1
                chosen.append(_example(candidate, name, sizes[name]))
    return sorted(chosen, key=lambda example: example.outcome)


def outcome(scores: Mapping[str, float]) -> str:
    """How the judged arm did on a row, given the scores by arm."""
    name = judged_arm(list(scores))
    score = scores[name]
    for baseline, title in (("oracle", "the right adapter"), ("plain", "the plain model")):
        if baseline in scores and baseline != name and scores[baseline] != score:
            return f"{'better' if score > scores[baseline] else 'worse'} than {title}"
    return "no difference, full score" if score == 1 else "no difference, not the full score"


def _draw(seed: int, row_id: str) -> str:
    return hashlib.sha256(f"{seed} {row_id}".encode()).hexdigest()


def _example(candidate: Candidate, outcome: str, alike: int) -> Example:
    return Example(
        task=candidate.row.task,
        input=candidate.row.input,
        expected=candidate.row.output,
        outcome=outcome,
        alike=alike,
        answers=candidate.answers,
        scores=candidate.scores,
        adapters=candidate.adapters,
    )
