"""Moves what a router keeps, and how large its mixes are, without training it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dlp_core.errors import InvalidRequest
from dlp_core.router.calibration import Curve, conformal_top_p
from dlp_core.router.evaluation import MAX_ADAPTERS
from dlp_core.router.router import Router
from dlp_core.router.rows import TaskRow


def tuned(
    router: Router, *, keep: float | None = None, coverage: float | None = None, rows: Sequence[TaskRow] | None = None
) -> Router:
    """The router with the threshold that keeps `keep` of the prompts of its tasks, and the top-p at which mixes hold
    the right adapter as often as `coverage` says.

    Both are measured on `rows` that it was not trained on; without them, `keep` is on what the training held back.
    Raises InvalidRequest for a fraction out of reach, for a coverage without rows, and for rows of no task it knows.
    """
    if keep is None and coverage is None:
        raise InvalidRequest("give the fraction to keep, the coverage of mixes, or both")
    if rows is None:
        if coverage is not None:
            raise InvalidRequest("to tune the coverage, give rows that the router was not trained on")
        return router if keep is None else router.keeping(keep)
    known = [row for row in rows if row.task in router.labels]
    if not known:
        raise InvalidRequest(f"no row is of a task this router knows, such as {', '.join(router.labels[:3])}")
    novelty = router.novelty([row.input for row in known])
    unknown = router.novelty([row.input for row in rows if row.task not in router.labels])
    router = replace(router, curve=Curve.of(novelty, unknown))
    if keep is not None:
        router = router.keeping(keep)
    if coverage is not None:
        probabilities = np.array(
            [routing.label_probabilities for routing in router.route([row.input for row in known])]
        )
        tasks = np.array([router.labels.index(str(row.task)) for row in known])
        top_p = conformal_top_p(probabilities, tasks, coverage, largest=MAX_ADAPTERS)
        router = replace(router, calibration=replace(router.calibration, top_p=top_p))
    return router
