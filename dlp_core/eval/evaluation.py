"""Run a suite on a bank: every row through every arm, then the composite prompts."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean

from dlp_core.eval.answers import Answerer, Job
from dlp_core.eval.arms import Arm, Chooser
from dlp_core.eval.composite import evaluate_composites
from dlp_core.eval.cost import cost_of
from dlp_core.eval.examples import Candidate, choose_examples
from dlp_core.eval.journal import Answer
from dlp_core.eval.judged_bank import JudgedBank
from dlp_core.eval.results import (
    ArmScore,
    BankInfo,
    CompositeScore,
    Interval,
    Results,
    RouterScore,
    RowScore,
    SuiteInfo,
    TaskScore,
)
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.statistics import estimate, estimate_over_tasks
from dlp_core.eval.suite import Suite, draw_composites
from dlp_core.eval.trials import Trial, ask
from dlp_core.mix import Mix
from dlp_core.router import Router, Routing
from dlp_core.store.transfers import Progress

Phase = Callable[[str], Progress]
"""Called with the title of each phase as it begins; returns the callback for its progress."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One row under one arm."""

    arm: Arm
    mix: Mix
    asked: Trial

    @property
    def row(self) -> EvalRow:
        return self.asked.row


async def evaluate(
    chooser: Chooser,
    arms: Sequence[Arm],
    bank: JudgedBank,
    answerer: Answerer,
    *,
    setup: str,
    conditions: str,
    concurrency: int,
    phase: Phase,
) -> Results:
    """Evaluate a bank under arms it supports, at most `concurrency` requests in the engine at a time.

    Raises what the engine raises.
    """
    started = time.perf_counter()
    suite = chooser.suite
    groups = draw_composites(suite)
    report = phase("route")
    trials = _trials(suite, arms, chooser, report)
    jobs = [job for trial in trials for job in trial.asked.jobs]
    answers = await answerer.answer(jobs, concurrency=concurrency, report=phase("answer"))
    scores = {(trial.arm.name, trial.row.id): trial.asked.metrics(answers, suite) for trial in trials}
    composites: list[CompositeScore] = []
    if groups:
        composites = await evaluate_composites(
            suite, groups, chooser, answerer, concurrency=concurrency, report=phase("composites")
        )
    return Results(
        created=datetime.now(UTC),
        suite=describe_suite(suite),
        bank=describe_bank(bank),
        setup=setup,
        conditions=conditions,
        seconds=round(time.perf_counter() - started, 1),
        arms=[_arm_score(arm, trials, answers, scores, suite) for arm in arms],
        router=_router_score(suite, chooser.router),
        composites=composites,
        rows={
            row.id: RowScore(
                task=row.task,
                scores={
                    arm.name: scores[arm.name, row.id][suite.score_metric(row)]
                    for arm in arms
                    if (arm.name, row.id) in scores
                },
            )
            for row in suite.rows
        },
        examples=choose_examples(_candidates(trials, answers, scores, suite), seed=suite.settings.seed),
    )


def describe_suite(suite: Suite) -> SuiteInfo:
    """The suite as results name it."""
    return SuiteInfo(
        name=suite.settings.name,
        digest=suite.digest,
        rows=len(suite.rows),
        seed=suite.settings.seed,
        metrics=tuple(sorted({suite.score_metric(row) for row in suite.rows})),
    )


def describe_bank(bank: JudgedBank) -> BankInfo:
    """The bank as results name it."""
    manifest = bank.manifest
    return BankInfo(
        version=manifest.version,
        digest=manifest.digest,
        base_model=manifest.base_model.id,
        adapters=len(manifest.adapters),
        router=manifest.router.version if manifest.router else None,
        location=bank.location,
        published=bank.store is not None,
    )


def _candidates(
    trials: Sequence[_Trial],
    answers: dict[Job, Answer],
    scores: dict[tuple[str, str], dict[str, float]],
    suite: Suite,
) -> list[Candidate]:
    by_row: dict[str, Candidate] = {}
    for trial in trials:
        row = trial.row
        candidate = by_row.setdefault(row.id, Candidate(row))
        name = trial.arm.name
        candidate.scores[name] = scores[name, row.id][suite.score_metric(row)]
        candidate.answers[name] = trial.asked.text(answers)
        candidate.adapters[name] = list(trial.mix.names)
    return list(by_row.values())


def _trials(suite: Suite, arms: Sequence[Arm], chooser: Chooser, report: Progress) -> list[_Trial]:
    """One trial for each arm and row it applies to. Each router routes its texts in one call, and each text once."""
    # arm by arm, so that most batches have the rows of one arm and times differ between arms
    pairs = [
        (arm, row, chooser.router_for(arm, row)) for arm in arms for row in suite.rows if chooser.applies(arm, row)
    ]
    texts: dict[int, tuple[Router, dict[tuple[str, ...], None]]] = {}
    for _, row, router in pairs:
        if router is not None:
            texts.setdefault(id(router), (router, {}))[1][row.routing_texts] = None
    routings: dict[tuple[int, tuple[str, ...]], Routing] = {}
    for done, (router_id, (router, inputs)) in enumerate(texts.items()):
        report(done, len(texts))
        for text, routing in zip(inputs, router.route_first(list(inputs)), strict=True):
            routings[router_id, text] = routing
    return [
        _trial(
            arm, row, chooser.mix(arm, row, None if router is None else routings[id(router), row.routing_texts]), suite
        )
        for arm, row, router in pairs
    ]


def _trial(arm: Arm, row: EvalRow, mix: Mix, suite: Suite) -> _Trial:
    sentence = (arm.top_p, suite.settings.max_adapters) if arm.by_sentence else None
    return _Trial(arm, mix, ask(row, mix, suite, sentence=sentence, activation=arm.activation))


def _arm_score(
    arm: Arm,
    trials: Sequence[_Trial],
    answers: dict[Job, Answer],
    scores: dict[tuple[str, str], dict[str, float]],
    suite: Suite,
) -> ArmScore:
    own = [trial for trial in trials if trial.arm == arm]
    tasks: dict[str, list[EvalRow]] = defaultdict(list)
    for trial in own:
        tasks[trial.row.task].append(trial.row)
    scores_by_task = {
        task: [scores[arm.name, row.id][suite.score_metric(row)] for row in rows] for task, rows in tasks.items()
    }
    seed = suite.settings.seed
    return ArmScore(
        name=arm.name,
        score=Interval.of(estimate_over_tasks(scores_by_task, seed=seed)),
        tasks={
            task: TaskScore(
                rows=len(rows),
                score=Interval.of(estimate(scores_by_task[task], seed=seed)),
                metrics=_means([scores[arm.name, row.id] for row in rows]),
            )
            for task, rows in tasks.items()
        },
        adapters=fmean(len(trial.mix.names) for trial in own),
        plain=fmean(not trial.mix for trial in own),
        choices=_digest(
            [(trial.row.id, str(trial.arm.by_sentence), repr(trial.mix), *_activation(arm)) for trial in own]
        ),
        cost=cost_of([answers[trial.asked.jobs[-1]] for trial in own]),
    )


def _activation(arm: Arm) -> tuple[str, ...]:
    return () if arm.activation == "always" else (arm.activation,)


def _digest(choices: Sequence[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:12]


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for metric, value in row.items():
            values[metric].append(value)
    return {metric: 100 * fmean(series) for metric, series in values.items()}


def _router_score(suite: Suite, router: Router | None) -> RouterScore | None:
    rows = [row for row in suite.rows if router is not None and row.task in router.labels]
    if router is None or not rows:
        return None
    started = time.perf_counter()
    routings = router.route_first([row.routing_texts for row in rows])
    seconds = (time.perf_counter() - started) / len(rows)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for row, routing in zip(rows, routings, strict=True):
        confusion[row.task][routing.best] += 1
    return RouterScore(
        accuracy=fmean(row.task == routing.best for row, routing in zip(rows, routings, strict=True)),
        refused=fmean(not routing.fits for routing in routings),
        confusion={task: dict(counts) for task, counts in confusion.items()},
        seconds=round(seconds, 6),
    )
