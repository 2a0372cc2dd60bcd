"""What only training again can tell of a router: how long it takes, whether it gives the same bytes, and how well the
tasks of the bank would be recognised as strangers if the router had not seen them. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dlp_core.errors import InvalidRequest
from dlp_core.router.evaluation import evaluate
from dlp_core.router.router import Router, pack
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import TrainSettings, train_router
from dlp_core.store.transfers import Progress, silent

LEFT_OUT = 4
"""Tasks that are left out together."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """Filled by retrain. Means are over the routers that were trained without some tasks, judged on the test rows."""

    training_s: float
    """Seconds to train on all rows."""
    reproduced: bool
    """The weights are those of the router under test, to the last bit."""
    unseen_auroc: float
    """Mean chance that a row of a task that was left out has more none mass than one of the others."""
    unseen_refused: float
    unseen_kept: float
    """Mean share of the rows of the other tasks that were kept."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def retrain(
    router: Router,
    train_rows: Sequence[TaskRow],
    test_rows: Sequence[TaskRow],
    *,
    report: Progress = silent,
) -> Retraining:
    """Trains once on all rows and once without each LEFT_OUT tasks in a row, so that each is left out once or more.

    `report` gets (trainings done, in all). Raises InvalidRequest for rows a router cannot be trained on, or of too few
    tasks to leave any out.
    """
    tasks = sorted({row.task for row in train_rows if row.task is not None})
    if len(tasks) < LEFT_OUT + 2:
        raise InvalidRequest(
            f"{len(tasks)} tasks are too few to leave {LEFT_OUT} out; give rows of {LEFT_OUT + 2} or more"
        )
    settings = replace(TrainSettings(), seed=int(router.training.get("seed", 0)))
    starts = range(0, len(tasks), LEFT_OUT)
    report(0, len(starts) + 1)
    again, summary = train_router(train_rows, settings)
    found = []
    for number, start in enumerate(starts, start=1):
        report(number, len(starts) + 1)
        unseen = {tasks[(start + offset) % len(tasks)] for offset in range(LEFT_OUT)}
        without, _ = train_router([row for row in train_rows if row.task not in unseen], settings)
        found.append(evaluate(without, test_rows))
    report(len(starts) + 1, len(starts) + 1)
    return Retraining(
        training_s=summary.seconds,
        reproduced=_same(router, again),
        unseen_auroc=float(np.mean([result.unknown_auroc for result in found])),
        unseen_refused=float(np.mean([result.unknown_refused for result in found])),
        unseen_kept=float(np.mean([result.kept for result in found])),
    )


def _same(one: Router, other: Router) -> bool:
    left, right = (pack(router.network, router.clouds, router.memory) for router in (one, other))
    return one.labels == other.labels and all(np.array_equal(left[name], right[name]) for name in left)
