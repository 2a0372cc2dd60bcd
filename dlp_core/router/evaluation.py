"""Evaluates a router on rows: accuracy, calibration, rejection of out-of-scope texts, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np

from dlp_core.errors import InvalidRequest
from dlp_core.router.augment import mistype, strip_instruction
from dlp_core.router.calibration import auroc, expected_calibration_error
from dlp_core.router.router import Router
from dlp_core.router.routing import Routing
from dlp_core.router.rows import TaskRow

_WARM_UP = 20
_BATCH = 64
_TYPOS = 0.05


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Filled by evaluate. Fractions are of the rows whose task the router knows, unless they say unknown."""

    rows: int
    accuracy: float
    """Fraction of rows whose likeliest adapter is the row's task."""
    ece: float
    """Expected calibration error of `confidence`, 15 bins."""
    typos: float
    """Accuracy with 5% of the characters replaced at random."""
    bare: float
    """Accuracy without the first line and the answer options, unless almost nothing would remain."""
    kept: float
    """Fraction that is not "none of these"."""
    single: float
    """Fraction whose mix is one adapter at weight 1."""
    unknown_rows: int
    """Rows with task null, or of a task the router does not know."""
    unknown_refused: float | None
    """Fraction of the unknown rows that is "none of these"; None if there are no unknown rows."""
    unknown_auroc: float | None
    """Probability that an unknown row has a higher P(none of these) than a known one; None if there are none."""
    p50_ms: float
    p99_ms: float
    """One prompt at a time, from text to Routing."""
    prompts_per_s: float
    """In batches of 64."""
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(router: Router, rows: Sequence[TaskRow]) -> Evaluation:
    """Route every row, once alone (timed) and once in a batch.

    Raises InvalidRequest if no row is of a task the router knows.
    """
    known = [row for row in rows if row.task in router.labels]
    unknown = [row for row in rows if row.task not in router.labels]
    if not known:
        raise InvalidRequest(
            f"no row is of a task this router knows, such as {', '.join(router.labels[:3])}; add rows of its tasks"
        )
    routings = router.route([row.input for row in known])
    correct = np.array([routing.best == row.task for routing, row in zip(routings, known, strict=True)])
    mixes = [routing.mix() for routing in routings]
    unknown_routings = router.route([row.input for row in unknown])
    seconds = _time_alone(router, rows)
    rng = Random(0)
    return Evaluation(
        rows=len(known),
        accuracy=float(correct.mean()),
        ece=expected_calibration_error(np.array([routing.confidence for routing in routings]), correct),
        typos=_accuracy(router, known, lambda text: mistype(text, rng, _TYPOS)),
        bare=_accuracy(router, known, strip_instruction),
        kept=float(np.mean([bool(mix) for mix in mixes])),
        single=float(np.mean([len(mix.names) == 1 for mix in mixes])),
        unknown_rows=len(unknown),
        unknown_refused=float(np.mean([not routing.mix() for routing in unknown_routings]))
        if unknown_routings
        else None,
        unknown_auroc=_none_auroc(routings, unknown_routings) if unknown_routings else None,
        p50_ms=float(np.quantile(seconds, 0.5)) * 1e3,
        p99_ms=float(np.quantile(seconds, 0.99)) * 1e3,
        prompts_per_s=_batched_rate(router, rows),
        parameters=router.network.parameters,
    )


def _accuracy(router: Router, rows: Sequence[TaskRow], perturb: Callable[[str], str]) -> float:
    routings = router.route([perturb(row.input) for row in rows])
    return float(np.mean([routing.best == row.task for routing, row in zip(routings, rows, strict=True)]))


def _none_auroc(known: Sequence[Routing], unknown: Sequence[Routing]) -> float:
    return auroc(np.array([routing.none for routing in known]), np.array([routing.none for routing in unknown]))


def _time_alone(router: Router, rows: Sequence[TaskRow]) -> list[float]:
    for row in rows[:_WARM_UP]:
        router.route([row.input])
    seconds = []
    for row in rows:
        began = time.perf_counter()
        router.route([row.input])
        seconds.append(time.perf_counter() - began)
    return seconds


def _batched_rate(router: Router, rows: Sequence[TaskRow]) -> float:
    texts = [row.input for row in rows]
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    began = time.perf_counter()
    for batch in batches:
        router.route(batch)
    return len(texts) / (time.perf_counter() - began)
