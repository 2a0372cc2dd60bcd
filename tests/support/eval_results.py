"""Results of evaluations that were never run: the statistics are real, the scores are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean

from dlp_core.eval.results import (
    ArmScore,
    BankInfo,
    Cost,
    Interval,
    Results,
    RouterScore,
    RowScore,
    SuiteInfo,
    TaskScore,
)
from dlp_core.eval.statistics import estimate, estimate_over_tasks

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm to task to the score of each row, from 0 to 1."""

COST = Cost(answers=4, prompt_tokens=200, completion_tokens=80, seconds=0.5, seconds_p95=0.9)


def make_results(scores: Scores, *, metrics: tuple[str, ...] = ("exact_match",), keep_rows: bool = True) -> Results:
    """Results with a router that knows all tasks and is right on each first row of a task."""
    rows: dict[str, RowScore] = {}
    for arm, tasks in scores.items():
        for task, values in tasks.items():
            for number, value in enumerate(values):
                rows.setdefault(f"{task}-{number}", RowScore(task=task, scores={})).scores[arm] = value
    tasks = sorted({row.task for row in rows.values()})
    counts = {task: sum(row.task == task for row in rows.values()) for task in tasks}
    other = {task: tasks[index - 1] for index, task in enumerate(tasks)}
    return Results(
        created=datetime(2026, 11, 27, tzinfo=UTC),
        suite=SuiteInfo(name="given", digest="0" * 12, rows=len(rows), seed=0, metrics=metrics),
        bank=BankInfo(
            version="abc", digest="d", base_model="tiny", adapters=len(tasks), router="r", location="banks/<b>",
            published=False,
        ),
        setup="tiny in float32",
        conditions="cpu with 1 thread, 4 requests at a time",
        seconds=1.0,
        arms=[_arm(name, tasks) for name, tasks in scores.items()],
        router=RouterScore(
            accuracy=len(tasks) / len(rows),
            refused=0.0,
            confusion={task: {task: 1, other[task]: count - 1} for task, count in counts.items()},
            seconds=0.002,
        ),
        composites=[],
        rows=rows if keep_rows else {},
    )  # fmt: skip


def _arm(name: str, tasks: Mapping[str, Sequence[float]]) -> ArmScore:
    return ArmScore(
        name=name,
        score=Interval.of(estimate_over_tasks(tasks)),
        tasks={
            task: TaskScore(
                rows=len(values), score=Interval.of(estimate(values)), metrics={"exact_match": 100 * fmean(values)}
            )
            for task, values in tasks.items()
        },
        adapters=1.0,
        plain=0.0,
        choices=name,
        cost=COST,
    )


def uniform(tasks: int, rows: int, right: Mapping[str, int]) -> Scores:
    """Of `rows` rows of each task, the first `right[arm]` are answered right."""
    assert max(right.values()) <= rows
    return {
        arm: {f"task{number}": [1.0] * count + [0.0] * (rows - count) for number in range(tasks)}
        for arm, count in right.items()
    }
