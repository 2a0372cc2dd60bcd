"""Evaluates a router on rows: accuracy, calibration, rejection of out-of-scope texts, other wordings, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np

from dlp_core.errors import InvalidRequest
from dlp_core.mix import select_top_p
from dlp_core.router.augment import invented_word, mistype, reword, strip_instruction
from dlp_core.router.calibration import auroc, expected_calibration_error
from dlp_core.router.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.slots import Slots, wording_warnings

MAX_ADAPTERS = 3
"""Of a mix, as requests have it unless they say otherwise."""

SEAMS = (". ", " and ", "\n")
"""How the two tasks of a pair follow each other."""

_WARM_UP = 20
_BATCH = 64
_TYPOS = 0.05
_PAIRS = 1000
_VALUES = 50  # invented words that a row's slot values are drawn from


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Filled by evaluate. Fractions are of the rows whose task the router knows, unless they say unknown."""

    rows: int
    accuracy: float
    """Fraction of rows whose likeliest adapter is the row's task."""
    ece: float
    """Expected calibration error of `confidence`, 15 bins."""
    kept: float
    """Fraction that is not "none of these"."""
    kept_right: float
    """Fraction that is kept and right: what users get."""
    in_mix: float
    """Fraction whose mix, at the router's top-p, would hold the row's adapter if every row were kept."""
    mix_size: float
    """Mean number of adapters in it."""
    typos: float
    """Accuracy with 5% of the characters replaced at random."""
    bare: float
    """Accuracy without the first line and the answer options, unless almost nothing would remain."""
    other_values: float
    """Kept and right with other slot values: words that few rows of the task have are replaced."""
    reworded: float
    """Kept and right with another opening ("could you please") and another close."""
    pairs: float | None
    """Fraction of texts made of two rows of different tasks whose mix has both adapters; None for one task."""
    unknown_rows: int
    """Rows with task null, or of a task the router does not know."""
    unknown_refused: float | None
    """Fraction of the unknown rows that is "none of these"; None if there are no unknown rows."""
    unknown_auroc: float | None
    """Probability that an unknown row has a lower margin than a known one; None if there are none."""
    unknown_refused_at_95: float | None
    """Fraction of the unknown rows refused at the threshold that keeps 95% of the known ones; None if there are
    none."""
    p50_ms: float
    p99_ms: float
    """One prompt at a time, from text to Routing."""
    prompts_per_s: float
    """In batches of 64."""
    parameters: int
    warnings: tuple[str, ...]
    """Why these rows say less than they seem to."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(router: Router, rows: Sequence[TaskRow]) -> Evaluation:
    """Route every row, once alone (timed) and once in a batch, and variants of it.

    Raises InvalidRequest if no row is of a task the router knows.
    """
    known = [row for row in rows if row.task in router.labels]
    unknown = [row for row in rows if row.task not in router.labels]
    if not known:
        raise InvalidRequest(
            f"no row is of a task this router knows, such as {', '.join(router.labels[:3])}; add rows of its tasks"
        )
    routings = router.route([row.input for row in known])
    right = [routing.best == row.task for routing, row in zip(routings, known, strict=True)]
    mixes = [
        select_top_p(routing.probabilities, top_p=routing.top_p, max_adapters=MAX_ADAPTERS) for routing in routings
    ]
    margins = np.array([routing.margin for routing in routings])
    unknown_margins = np.array([routing.margin for routing in router.route([row.input for row in unknown])])
    seconds = _time_alone(router, rows)
    rng = Random(0)
    texts_by_task = {task: [row.input for row in known if row.task == task] for task in router.labels}
    slots = Slots(texts_by_task)
    return Evaluation(
        rows=len(known),
        accuracy=float(np.mean(right)),
        ece=expected_calibration_error(np.array([routing.confidence for routing in routings]), np.array(right)),
        kept=float(np.mean(margins > 0)),
        kept_right=float(np.mean((margins > 0) & right)),
        in_mix=float(np.mean([row.task in mix.names for row, mix in zip(known, mixes, strict=True)])),
        mix_size=float(np.mean([len(mix.names) for mix in mixes])),
        typos=_accuracy(router, known, lambda row: mistype(row.input, rng, _TYPOS)),
        bare=_accuracy(router, known, lambda row: strip_instruction(row.input)),
        other_values=_accuracy(
            router,
            known,
            lambda row: slots.swap(row.input, str(row.task), [invented_word(rng) for _ in range(_VALUES)], rng),
            kept=True,
        ),
        reworded=_accuracy(router, known, lambda row: reword(row.input, rng), kept=True),
        pairs=_pair_recall(router, known, rng),
        unknown_rows=len(unknown),
        unknown_refused=float(np.mean(unknown_margins <= 0)) if unknown else None,
        unknown_auroc=auroc(-margins, -unknown_margins) if unknown else None,
        unknown_refused_at_95=float(np.mean(unknown_margins < np.quantile(margins, 0.05))) if unknown else None,
        p50_ms=float(np.quantile(seconds, 0.5)) * 1e3,
        p99_ms=float(np.quantile(seconds, 0.99)) * 1e3,
        prompts_per_s=_batched_rate(router, rows),
        parameters=router.parameters,
        warnings=wording_warnings(texts_by_task),
    )


def _accuracy(
    router: Router, rows: Sequence[TaskRow], change: Callable[[TaskRow], str], *, kept: bool = False
) -> float:
    """Fraction of the changed rows that are routed to their task, and kept if that counts."""
    routings = router.route([change(row) for row in rows])
    return float(
        np.mean(
            [
                routing.best == row.task and (routing.fits or not kept)
                for routing, row in zip(routings, rows, strict=True)
            ]
        )
    )


def _pair_recall(router: Router, rows: Sequence[TaskRow], rng: Random) -> float | None:
    if len({row.task for row in rows}) < 2:
        return None
    pairs: list[tuple[TaskRow, TaskRow]] = []
    while len(pairs) < _PAIRS:
        first, second = rng.choice(rows), rng.choice(rows)
        if first.task != second.task:
            pairs.append((first, second))
    routings = router.route([first.input + rng.choice(SEAMS) + second.input for first, second in pairs])
    return float(
        np.mean(
            [
                {first.task, second.task} <= set(routing.mix().names)
                for routing, (first, second) in zip(routings, pairs, strict=True)
            ]
        )
    )


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
