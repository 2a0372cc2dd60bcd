"""Compares two routers on prompts that neither was trained on: does each prompt get what it should?

A prompt of an adapter is served as it should be if that adapter is likeliest and the router does not refuse it; a
prompt of no adapter, if the router does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlp_core.eval.statistics import estimate
from dlp_core.improve.run import Judged
from dlp_core.router import Router
from dlp_core.router.rows import TaskRow


def right(router: Router, rows: Sequence[TaskRow]) -> list[bool]:
    """Of each row, whether the router serves it as it should."""
    routings = router.route([row.input for row in rows])
    return [
        (not routing.fits if row.task is None else routing.fits and routing.best == row.task)
        for routing, row in zip(routings, rows, strict=True)
    ]


def judge(old: Router, new: Router, rows: Sequence[TaskRow]) -> Judged | None:
    """The comparison, None without rows. Its interval is a paired bootstrap's."""
    if not rows:
        return None
    before, after = (np.array(right(router, rows), np.float64) for router in (old, new))
    change = estimate((100 * (after - before)).tolist())
    return Judged(
        rows=len(rows),
        old=_percent(before),
        new=_percent(after),
        change=round(change.mean, 3),
        low=round(change.low, 3),
        high=round(change.high, 3),
        kept=_kept(old, new, [row for row in rows if row.task is not None], fits=True),
        refused=_kept(old, new, [row for row in rows if row.task is None], fits=False),
    )


def _kept(old: Router, new: Router, rows: Sequence[TaskRow], *, fits: bool) -> tuple[float, float]:
    """Percent of the rows that fit an adapter, or that do not, by each router; 100 without rows."""
    texts = [row.input for row in rows]
    shares = [
        _percent(np.array([routing.fits == fits for routing in router.route(texts)], np.float64)) if texts else 100.0
        for router in (old, new)
    ]
    return shares[0], shares[1]


def _percent(values: object) -> float:
    return round(100 * float(np.mean(np.asarray(values))), 3)
