"""Soft labels in a training: rows that several adapters may serve, or none (dlp_core.router.rows).

    target = fits * (smoothing / N + (1 - smoothing) * share) + (1 - fits) / N        weight = fits + (1 - fits) * FLAT

where `fits` is the sum of a row's labels and `share` a label over that sum. A row that is certain of one adapter, or of
none, is thus trained on as a row with that task. Which texts fit no adapter at all is not learnt by the softmax but by
where they lie (novelty.py): there a row counts for its likeliest adapter, or as one of no task if it is more likely
that none fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dlp_core.router.rows import TaskRow


class Shares(NamedTuple):
    """The soft labels of one text."""

    fits: float
    """The probability that some adapter should serve it."""
    of: tuple[tuple[int, float], ...]
    """The probability of each adapter, by index, given that one should; they sum to 1."""


def shares_of(labels: Sequence[tuple[str, float]], index_of: Mapping[str, int]) -> Shares:
    """The labels, by index. Adapters that `index_of` lacks must have been left out by `settled`."""
    fits = min(sum(value for _, value in labels), 1.0)
    return Shares(fits, tuple((index_of[name], value / fits) for name, value in labels if value > 0))


def settled(rows: Sequence[TaskRow], *, min_rows: int) -> tuple[list[TaskRow], tuple[str, ...]]:
    """Leave adapters out of all labels that are the likeliest of fewer than `min_rows` rows: too few to learn from, and
    as many as chance brings where an adapter helps nowhere. The others share its part. Adapters that rows without
    labels name are kept. Also says so, in a line for each adapter; rows without labels come back as they are."""
    named = {row.task for row in rows if row.labels is None}
    rows = list(rows)
    lines: list[str] = []
    while True:
        counts = Counter({name: 0 for row in rows for name, _ in row.labels or ()})
        counts.update(row.task for row in rows if row.task is not None)
        rare = [(count, name) for name, count in sorted(counts.items()) if count < min_rows and name not in named]
        if not rare:
            return rows, tuple(lines)
        count, name = min(rare)
        rows = [row if row.labels is None else _without(row, name) for row in rows]
        lines.append(
            f"{name!r} is the best adapter of {count} {'row' if count == 1 else 'rows'}, too few to learn from "
            f"({min_rows}): the router does not know it"
        )


def _without(row: TaskRow, name: str) -> TaskRow:
    """The row as if that adapter had not been asked."""
    labels = dict(row.labels or ())
    rest = 1.0 - labels.pop(name, 0.0)
    scale = 1.0 / rest if rest > 0 else 0.0
    return TaskRow.labelled(row.input, {other: value * scale for other, value in labels.items()}, row.weight)
