"""Runs, one after the other: what is due now, or for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dlp_core.errors import Conflict, StoreUnavailable
from dlp_core.improve import run as runs
from dlp_core.improve.run import Run
from dlp_core.improve.steps import Tools, Waiting, begin, take_step
from dlp_core.router.rows import TaskRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Demand:
    """When a run begins, and with what."""

    base: Sequence[TaskRow] | None
    """The owner's rows; None for those of the last run."""
    min_rows: int
    seed: int = 0


def turn(tools: Tools, demand: Demand, *, again: bool = True) -> Run | Waiting | None:
    """Do the one thing that is due: begin a run, or take its next step. None if nothing is, because a canary is on
    trial; without `again` also if the last run is over.

    Raises what `begin` and `take_step` raise.
    """
    last = runs.latest(tools.store)
    if last is None or (last[0].over and again):
        return begin(tools.store, demand.base, min_rows=demand.min_rows, seed=demand.seed)
    if last[0].over:
        return None
    after = take_step(tools, *last)
    return None if after is last[0] else after


def until_waiting(tools: Tools, demand: Demand) -> Iterator[Run | Waiting]:
    """Take turns until there is nothing to do for now: each state of one run as it is reached. Raises what `turn`
    raises."""
    again = True
    while (outcome := turn(tools, demand, again=again)) is not None:
        yield outcome
        if isinstance(outcome, Waiting):
            return
        again = False


def watch(tools: Tools, demand: Demand, *, wait: Callable[[], bool]) -> Iterator[Run | Waiting]:
    """Take turns for ever: run after run. `wait` is called when there is nothing to do for now, or the store does not
    answer; it returns whether to go on. Raises what `turn` raises but for that."""
    waited: Waiting | None = None
    while True:
        try:
            outcome = turn(tools, demand)
        except (Conflict, StoreUnavailable) as error:
            log.warning("%s", error.message)
            outcome = None
        if outcome is not None and outcome != waited:
            yield outcome
        waited = outcome if isinstance(outcome, Waiting) else None
        if not isinstance(outcome, Run) and not wait():
            return
