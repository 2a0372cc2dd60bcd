"""Runs a suite on a bank: every row through every arm, then the composite prompts."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean

from dlp_core.bank.manifest import BankManifest
from dlp_core.eval.answers import Answerer, Job
from dlp_core.eval.arms import Arm, Chooser
from dlp_core.eval.composite import judge_composites
from dlp_core.eval.journal import Answer
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.options import chosen, written
from dlp_core.eval.results import (
    ArmScore,
    BankOfResults,
    CompositeScore,
    Interval,
    Results,
    RouterScore,
    RowScore,
    SuiteOfResults,
    TaskScore,
)
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.statistics import estimate, estimate_over_tasks
from dlp_core.eval.suite import Suite, composites
from dlp_core.mix import Mix
from dlp_core.router import Router, Routing
from dlp_core.store.transfers import Progress

Phase = Callable[[str], Progress]
"""Called when a phase begins, with what it does; returns how its progress is told."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one arm asks about one row."""

    arm: Arm
    row: EvalRow
    mix: Mix
    generate: Job | None
    judge: Job | None


async def evaluate(
    chooser: Chooser,
    arms: Sequence[Arm],
    manifest: BankManifest,
    answerer: Answerer,
    *,
    setup: str,
    at_once: int,
    phase: Phase,
) -> Results:
    """Judges a bank by arms it can have, `at_once` requests in the engine at a time. Raises what the engine raises."""
    began = time.perf_counter()
    suite = chooser.suite
    groups = composites(suite)
    report = phase("route")
    asked = _ask(suite, arms, chooser, report)
    jobs = [job for one in asked for job in (one.judge, one.generate) if job is not None]
    answers = await answerer.answer(jobs, at_once=at_once, report=phase("answer"))
    scores = {(one.arm.name, one.row.id): _metrics(one, answers, suite) for one in asked}
    found: list[CompositeScore] = []
    if groups:
        found = await judge_composites(suite, groups, chooser, answerer, at_once=at_once, report=phase("composites"))
    return Results(
        created=datetime.now(UTC),
        suite=SuiteOfResults(
            name=suite.settings.name, digest=suite.digest, rows=len(suite.rows), seed=suite.settings.seed
        ),
        bank=BankOfResults(
            version=manifest.version,
            digest=manifest.digest,
            base_model=manifest.base_model.id,
            adapters=len(manifest.adapters),
            router=manifest.router.version if manifest.router else None,
        ),
        setup=setup,
        seconds=round(time.perf_counter() - began, 1),
        arms=[_arm_score(arm, asked, answers, scores, suite) for arm in arms],
        router=_router_score(suite, chooser.router),
        composites=found,
        rows={
            row.id: RowScore(
                task=row.task,
                scores={
                    arm.name: scores[arm.name, row.id][suite.score_of(row)]
                    for arm in arms
                    if (arm.name, row.id) in scores
                },
            )
            for row in suite.rows
        },
    )


def _ask(suite: Suite, arms: Sequence[Arm], chooser: Chooser, report: Progress) -> list[_Asked]:
    """One entry for each arm and row it applies to. Each router reads its texts together, and each text once."""
    wanted = [
        (arm, row, chooser.routed_by(arm, row)) for row in suite.rows for arm in arms if chooser.applies(arm, row)
    ]
    texts: dict[int, tuple[Router, dict[str, None]]] = {}
    for _, row, router in wanted:
        if router is not None:
            texts.setdefault(id(router), (router, {}))[1][row.input] = None
    routed: dict[tuple[int, str], Routing] = {}
    for done, (number, (router, inputs)) in enumerate(texts.items()):
        report(done, len(texts))
        for text, routing in zip(inputs, router.route(list(inputs)), strict=True):
            routed[number, text] = routing
    return [
        _jobs(arm, row, chooser.mix(arm, row, None if router is None else routed[id(router), row.input]), suite)
        for arm, row, router in wanted
    ]


def _jobs(arm: Arm, row: EvalRow, mix: Mix, suite: Suite) -> _Asked:
    settings = suite.settings.types[row.type]
    sentence = (arm.top_p, suite.settings.max_adapters) if arm.by_sentence else None
    choice = Mix() if arm.by_sentence else mix
    generate = judge = None
    if any(metric != LIKELIHOOD for metric in settings.metrics):
        generate = Job(row.input, choice, max_tokens=settings.max_tokens, sentence=sentence)
    if LIKELIHOOD in settings.metrics:
        options = tuple((letter, written(letter, row.options)) for letter in row.options)
        judge = Job(row.input, choice, options=options, sentence=sentence)
    return _Asked(arm, row, mix, generate, judge)


def _metrics(one: _Asked, answers: dict[Job, Answer], suite: Suite) -> dict[str, float]:
    found = {}
    for metric in suite.settings.types[one.row.type].metrics:
        if metric == LIKELIHOOD:
            assert one.judge is not None
            likelihoods = answers[one.judge].likelihoods
            assert likelihoods is not None
            best = max(likelihoods, key=likelihoods.__getitem__)
            found[metric] = float(best == chosen(one.row.output, one.row.options))
        else:
            assert one.generate is not None
            found[metric] = METRICS[metric](answers[one.generate].text, one.row)
    return found


def _arm_score(
    arm: Arm,
    asked: Sequence[_Asked],
    answers: dict[Job, Answer],
    scores: dict[tuple[str, str], dict[str, float]],
    suite: Suite,
) -> ArmScore:
    own = [one for one in asked if one.arm == arm]
    tasks: dict[str, list[EvalRow]] = defaultdict(list)
    for one in own:
        tasks[one.row.task].append(one.row)
    main = {task: [scores[arm.name, row.id][suite.score_of(row)] for row in rows] for task, rows in tasks.items()}
    seed = suite.settings.seed
    return ArmScore(
        name=arm.name,
        score=Interval.of(estimate_over_tasks(main, seed=seed)),
        tasks={
            task: TaskScore(
                rows=len(rows),
                score=Interval.of(estimate(main[task], seed=seed)),
                metrics=_means([scores[arm.name, row.id] for row in rows]),
            )
            for task, rows in tasks.items()
        },
        adapters=fmean(len(one.mix.names) for one in own),
        plain=fmean(not one.mix for one in own),
        choices=_digest([(one.row.id, str(one.arm.by_sentence), repr(one.mix)) for one in own]),
    )


def _digest(choices: Sequence[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:12]


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for metric, value in row.items():
            values[metric].append(value)
    return {metric: 100 * fmean(found) for metric, found in values.items()}


def _router_score(suite: Suite, router: Router | None) -> RouterScore | None:
    rows = [row for row in suite.rows if router is not None and row.task in router.labels]
    if router is None or not rows:
        return None
    routings = router.route([row.input for row in rows])
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for row, routing in zip(rows, routings, strict=True):
        confusion[row.task][routing.best] += 1
    return RouterScore(
        accuracy=fmean(row.task == routing.best for row, routing in zip(rows, routings, strict=True)),
        refused=fmean(not routing.fits for routing in routings),
        confusion={task: dict(found) for task, found in confusion.items()},
    )
