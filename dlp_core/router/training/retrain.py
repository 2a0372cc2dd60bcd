"""Retrains a router to measure how long that takes, whether it gives the same bytes, and how well tasks that the router
has not seen are recognised as out of scope. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dlp_core.errors import InvalidRequest
from dlp_core.router.evaluation import evaluate
from dlp_core.router.files import Parts, pack
from dlp_core.router.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import TrainSettings, train_router
from dlp_core.store.transfers import Progress, silent

LEFT_OUT = 4
"""Tasks left out of one training."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """Filled by retrain. Means are over the routers trained without some tasks, evaluated on the test rows."""

    training_s: float
    """Seconds to train on all rows."""
    reproduced: bool
    """Whether the weights equal those of the router under test, bit for bit."""
    unseen_auroc: float
    """Mean probability that a row of a left-out task has a higher P(none of these) than a row of the others."""
    unseen_refused: float
    """Mean fraction of the rows of left-out tasks that is "none of these"."""
    unseen_kept: float
    """Mean fraction of the rows of the other tasks that is not "none of these"."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def retrain(
    router: Router,
    train_rows: Sequence[TaskRow],
    test_rows: Sequence[TaskRow],
    *,
    report: Progress = silent,
) -> Retraining:
    """Train once on all rows, and once without each group of LEFT_OUT tasks: every task is left out at least once.

    `report` gets (trainings done, total). Raises InvalidRequest for rows that a router cannot be trained on, or with
    too few tasks to leave any out.
    """
    tasks = sorted({row.task for row in train_rows if row.task is not None})
    if len(tasks) < LEFT_OUT + 2:
        raise InvalidRequest(
            f"{len(tasks)} tasks are too few to leave {LEFT_OUT} out; give rows of at least {LEFT_OUT + 2}"
        )
    settings = replace(TrainSettings(), seed=int(router.training.get("seed", 0)))
    starts = range(0, len(tasks), LEFT_OUT)
    report(0, len(starts) + 1)
    retrained, summary = train_router(train_rows, settings)
    results = []
    for number, start in enumerate(starts, start=1):
        report(number, len(starts) + 1)
        left_out = {tasks[(start + offset) % len(tasks)] for offset in range(LEFT_OUT)}
        partial, _ = train_router([row for row in train_rows if row.task not in left_out], settings)
        results.append(evaluate(partial, test_rows))
    report(len(starts) + 1, len(starts) + 1)
    return Retraining(
        training_s=summary.seconds,
        reproduced=_equal(router, retrained),
        unseen_auroc=float(np.mean([result.unknown_auroc for result in results])),
        unseen_refused=float(np.mean([result.unknown_refused for result in results])),
        unseen_kept=float(np.mean([result.kept for result in results])),
    )


def _equal(first: Router, second: Router) -> bool:
    left, right = (
        pack(Parts(router.encoder, router.network, router.clusters, router.memory)) for router in (first, second)
    )
    return first.labels == second.labels and all(np.array_equal(left[name], right[name]) for name in left)
