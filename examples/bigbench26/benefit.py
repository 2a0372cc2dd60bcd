"""Routers taught by benefit: on tasks whose adapter is left out of the bank, and on all tasks with the whole bank.

    python -m examples.bigbench26.benefit BASE_MODEL DATA BANK OUT [--rows 48] [--only TASK]

Rows of the training data are scored under every adapter, once. Then routers are trained on soft labels, and the suite's
rows answered:

    plain      the backbone alone
    own        the adapter of the row's own task
    left-out   the bank's router, which learnt names, without the row's own task
    unseen     taught by benefit; the bank has no adapter of the row's task, and no row of it was seen
    seen       taught by benefit; the bank has no adapter of the row's task, its rows were labelled with the others
    known      taught by benefit, with all adapters and all rows

`--suite` asks the same of another bank: DATA has its train.jsonl.gz and what the suite names, as
`python -m examples.bank.build heldout` writes for the demo bank and examples/bank/heldout.yaml.

An interrupted run goes on with what OUT has: scores.jsonl, a router in routers/WAY/TASK, answers.jsonl. The last line
is a table; OUT/benefit.json has the same with intervals, and no data rows.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.eval.answers import Job
from dlp_core.eval.benefit import PRIOR_ROWS, TEMPERATURE
from dlp_core.eval.journal import Answer, Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.labelling import Labelled, Question, label_rows, labelled
from dlp_core.eval.metrics import METRICS
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.run import Setup, answering
from dlp_core.eval.statistics import Estimate, estimate_over_tasks
from dlp_core.eval.suite import Suite, load_suite
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Router
from dlp_core.router.router import restricted
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import TrainSettings, train_router
from dlp_core.text.rows import Row, read_rows

SUITE = Path(__file__).parent / "suite.yaml"
WAYS = ("plain", "own", "left-out", "unseen", "seen", "known")
COMPARED = (("unseen", "plain"), ("seen", "plain"), ("left-out", "plain"), ("known", "own"), ("known", "plain"))
"""Differences that are estimated, over the tasks."""

Mixes = dict[tuple[str, str], Mix]
"""By way and row id."""


def main(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    data: Annotated[Path, typer.Argument(help="Folder with train.jsonl.gz and test.jsonl.gz.")],
    bank: Annotated[Path, typer.Argument(help="Bank folder, with its router.")],
    out: Annotated[Path, typer.Argument(help="Folder for what is computed.")],
    *,
    rows: Annotated[int, typer.Option(min=8, help="Rows per task that are labelled.")] = 48,
    test_rows: Annotated[int | None, typer.Option(min=1, help="Rows per task that are answered.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Leave out only these, one at a time.")] = None,
    suite_file: Annotated[Path, typer.Option("--suite", help="YAML suite of DATA.")] = SUITE,
    metric: Annotated[str | None, typer.Option(help="The metric to score rows by that have it.")] = None,
    teacher: Annotated[bool, typer.Option(help="Whether routers are trained with the teacher.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Label, train, route, answer, compare."""
    suite = load_suite(suite_file, data=data, rows=test_rows).scored_by(metric)
    drawn = draw(list(read_rows(data / "train.jsonl.gz")), suite.tasks, rows)
    setup = Setup(base, dtype, "cpu", threads)
    settings = TrainSettings() if teacher else TrainSettings(teacher=None)
    result = compare(suite, drawn, bank, setup, out, left_out=only or suite.tasks, settings=settings)
    (out / "benefit.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(table(result))


def draw(rows: Sequence[Row], tasks: Sequence[str], count: int) -> list[Row]:
    """At most `count` rows of each task."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.task in tasks:
            by_task[str(row.task)].append(row)
    return [
        row for task in tasks for row in Random(f"benefit {task}").sample(by_task[task], min(count, len(by_task[task])))
    ]


def compare(
    suite: Suite,
    rows: Sequence[Row],
    bank_folder: Path,
    setup: Setup,
    out: Path,
    *,
    left_out: Sequence[str],
    settings: TrainSettings | None = None,
) -> dict[str, Any]:
    """The whole experiment, as JSON; what it computes is kept in `out`."""
    settings = settings or TrainSettings()
    out.mkdir(parents=True, exist_ok=True)
    cache = DiskCache(out / "cache", 10**10)
    with open_bank(str(bank_folder), cache) as bank:
        count = len(bank.manifest.adapters)
        measured = label_rows(
            rows,
            str(bank_folder),
            setup,
            cache=cache,
            journal=out / "scores.jsonl",
            candidates=count,
            report=lambda done, total: print(f"score rows: {done} of {total}", flush=True) if done % 20 == 0 else None,
        )
        mixes = _mixes(suite, measured, bank, routers=out / "routers", left_out=left_out, settings=settings)
        jobs = {
            (way, row.id): Job(row.input, mix, max_tokens=suite.settings.types[row.type].max_tokens, before=row.before)
            for row in suite.rows
            for way in WAYS
            if (mix := mixes.get((way, row.id))) is not None
        }
        with closing(Journal(out / "answers.jsonl")) as journal:
            answers = asyncio.run(_answer(list(jobs.values()), bank, setup, journal))
    return _result(suite, measured, mixes, {key: answers[job] for key, job in jobs.items()})


def _mixes(
    suite: Suite,
    measured: Sequence[Labelled],
    bank: JudgedBank,
    *,
    routers: Path,
    left_out: Sequence[str],
    settings: TrainSettings,
) -> Mixes:
    adapters = {adapter.name for adapter in bank.manifest.adapters}
    mixes: Mixes = {("plain", row.id): EMPTY_MIX for row in suite.rows}
    mixes |= {("own", row.id): Mix.of({row.task: 1.0}) for row in suite.rows if row.task in adapters}

    def route(way: str, router: Router, rows: Sequence[EvalRow]) -> None:
        routings = router.route_first([row.routing_texts for row in rows])
        for row, routing in zip(rows, routings, strict=True):
            mixes[way, row.id] = routing.mix(max_adapters=suite.settings.max_adapters)

    known = _trained(routers / "known", settings, lambda: taught(measured))
    route("known", known, suite.rows)
    for task in track(left_out, "train routers"):
        own = [row for row in suite.rows if row.task == task]
        for way in ("unseen", "seen"):
            seen = way == "seen"
            router = _trained(
                routers / way / task, settings, lambda seen=seen, task=task: taught(measured, without=task, seen=seen)
            )
            route(way, router, own)
        if bank.router is not None and task in bank.router.labels:
            route("left-out", restricted(bank.router, frozenset(bank.router.labels) - {task}), own)
    return mixes


def taught(measured: Sequence[Labelled], *, without: str | None = None, seen: bool = True) -> list[TaskRow]:
    """The rows that teach a router, where the bank has no adapter `without`; the rows of that task only if `seen`."""
    kept = [each for each in measured if seen or each.row.task != without]
    scores = [
        replace(
            each.scores,
            adapters=_less(each.scores.adapters, without),
            choices=None if each.scores.choices is None else _less(each.scores.choices, without),
        )
        for each in kept
    ]
    questions = [Question.of(each.row) for each in kept]
    again = labelled(questions, [tuple(each.adapters) for each in scores], scores)
    return [TaskRow.labelled(each.row.routing_texts[0], each.labels) for each in again]


def _less(values: Mapping[str, float], name: str | None) -> dict[str, float]:
    return {other: value for other, value in values.items() if other != name}


def _trained(folder: Path, settings: TrainSettings, rows: Callable[[], Sequence[TaskRow]]) -> Router:
    if not (folder / "router.json").exists():
        train_router(rows(), settings)[0].save(folder)
    return Router.load(folder)


async def _answer(jobs: Sequence[Job], bank: JudgedBank, setup: Setup, journal: Journal) -> dict[Job, Answer]:
    def report(done: int, total: int) -> None:
        if done % 100 == 0:
            print(f"answer: {done} of {total}", flush=True)

    async with answering(bank, bank.router, setup, journal) as answerer:
        return await answerer.answer(jobs, concurrency=setup.concurrency, report=report)


def _result(
    suite: Suite, measured: Sequence[Labelled], mixes: Mixes, answers: Mapping[tuple[str, str], Answer]
) -> dict[str, Any]:
    scores: dict[str, dict[str, dict[str, float]]] = {way: defaultdict(dict) for way in WAYS}
    for row in suite.rows:
        for way in WAYS:
            if (way, row.id) in answers:
                metric = METRICS[suite.score_metric(row)]
                scores[way][row.task][row.id] = 100 * metric(answers[way, row.id].text, row)
    names: dict[str, dict[str, Counter[str]]] = {way: defaultdict(Counter) for way in WAYS}
    for row in suite.rows:
        for way in WAYS:
            if (mix := mixes.get((way, row.id))) is not None:
                names[way][row.task][mix.names[0] if mix else "base"] += 1
    labels = defaultdict(Counter)
    for each in measured:
        labels[str(each.row.task)][each.best or "base"] += 1
    return {
        "suite": suite.settings.name,
        "digest": suite.digest,
        "labelled": len(measured),
        "metrics": sorted({suite.score_metric(row) for row in suite.rows}),
        "settings": {"temperature": TEMPERATURE, "prior_rows": PRIOR_ROWS},
        "differences": {
            f"{way} - {other}": asdict(found)
            for way, other in COMPARED
            if (found := _difference(scores[way], scores[other])) is not None
        },
        "tasks": {
            task: {
                way: {
                    "score": sum(found.values()) / len(found),
                    "first": dict(names[way][task].most_common(4)),
                }
                for way in WAYS
                if (found := scores[way].get(task))
            }
            | {"labels": dict(labels[task].most_common(4))}
            for task in suite.tasks
        },
    }


def _difference(way: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> Estimate | None:
    """Row by row, over the tasks that both have."""
    gains = {
        task: [score - other[task][row] for row, score in rows.items() if row in other[task]]
        for task, rows in way.items()
        if task in other
    }
    return estimate_over_tasks(gains) if gains else None


def table(result: Mapping[str, Any]) -> Table:
    """Points by task and way, and the differences below."""
    shown = Table("task", *WAYS, title="Points; the differences below with their 95% intervals")
    for task, ways in result["tasks"].items():
        shown.add_row(task, *(f"{ways[way]['score']:.1f}" if way in ways else "" for way in WAYS))
    shown.caption = "\n".join(
        f"{name}: {found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"
        for name, found in result["differences"].items()
    )
    return shown


if __name__ == "__main__":
    typer.run(main)
