"""Rows as a router is trained on them: labelled by index, and some of every task held back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from dlp_core.errors import InvalidRequest
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.soft_labels import Shares, shares_of

MIN_ROWS = 8
"""Minimum rows per task: fewer cannot be both trained on and held back."""

_HELD_BACK = 1 / 32
_FEW = 200  # held-back rows; where there are fewer, a larger part is held back, up to _MOST
_MOST = 1 / 8


class Example(NamedTuple):
    """A text and its tasks: one, two for joined texts, none for background rows."""

    text: str
    tasks: tuple[int, ...]
    weight: int = 1
    """How often it is trained on."""
    shares: Shares | None = None
    """Its soft labels; None if `tasks` is all there is to say."""


def label(rows: Sequence[TaskRow]) -> tuple[list[str], list[Example]]:
    """The sorted task names, and the rows with their indices. Raises InvalidRequest for fewer than two tasks, or a task
    with fewer than MIN_ROWS rows."""
    counts = Counter(row.task for row in rows if row.task is not None)
    labels = sorted(counts)
    if len(labels) < 2:
        raise InvalidRequest(
            f"the rows name {len(labels)} task{'' if len(labels) == 1 else 's'}; a router chooses between two or more"
        )
    for task in labels:
        if counts[task] < MIN_ROWS:
            raise InvalidRequest(f"task {task!r} has {counts[task]} rows; give each task at least {MIN_ROWS}")
    index_of = {task: index for index, task in enumerate(labels)}
    return labels, [
        Example(
            row.input,
            () if row.task is None else (index_of[row.task],),
            row.weight,
            None if row.labels is None else shares_of(row.labels, index_of),
        )
        for row in rows
    ]


def split(examples: list[Example], rng: Random) -> tuple[list[Example], list[Example]]:
    """Split into shuffled training examples, each as often as it weighs, and held-back ones, which get a share of every
    task, at least two."""
    training: list[Example] = []
    held_back: list[Example] = []
    part = min(_MOST, max(_HELD_BACK, _FEW / len(examples)))
    for _, members in sorted(by_task(examples).items()):
        rng.shuffle(members)
        cut = max(2, round(len(members) * part)) if len(members) >= MIN_ROWS else 0
        held_back += members[:cut]
        training += [example for example in members[cut:] for _ in range(example.weight)]
    rng.shuffle(training)
    return training, held_back


def by_task(examples: Sequence[Example]) -> dict[tuple[int, ...], list[Example]]:
    """The examples of each task, and those of none."""
    grouped: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        grouped[example.tasks].append(example)
    return grouped


def sample(examples: list[Example], count: int, rng: Random, *, min_rows: int = MIN_ROWS) -> list[Example]:
    """Sample about `count` examples, evenly over tasks, at least `min_rows` of each."""
    grouped = by_task(examples)
    share = max(min_rows, count // max(len(grouped), 1))
    return [e for _, members in sorted(grouped.items()) for e in rng.sample(members, min(share, len(members)))]
