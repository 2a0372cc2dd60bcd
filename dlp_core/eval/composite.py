"""Prompts that ask the questions of several tasks at once, as DLP-LoRA (section 4) and MeteoRA (arXiv 2405.13053) do.

    1. <question>

    2. <question>

Adapters are trained on one question at a time, so the answers are requested one by one: the assistant's turn is
prefilled with "1.", then with "1. <its first answer>\n2.", and each answer ends at the end of its line. Six methods:

    plain            the backbone alone
    by request       one mix, routed on the whole prompt
    by sentence      a mix for each sentence of the prompt and of the answers
    oracle by part   each question and its answer under its own adapter
    by task          each passage that the router finds answered on its own (dlp_core/generation/tasks.py)
    apart            each question as a prompt of its own, routed: what it costs to ask them in one
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from dlp_core.eval.answers import Answerer, Job, run_all
from dlp_core.eval.arms import SERVED, Arm, Chooser, parse
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.results import CompositeScore, Interval
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.statistics import estimate
from dlp_core.eval.suite import Suite
from dlp_core.generation.tasks import divided
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router.passages import passages_first
from dlp_core.store.transfers import Progress
from dlp_core.text.chat import Message

METHODS = ("plain", "by request", "by sentence", "oracle by part", "by task", "apart")


async def evaluate_composites(
    suite: Suite,
    groups: Mapping[int, Sequence[tuple[EvalRow, ...]]],
    chooser: Chooser,
    answerer: Answerer,
    *,
    concurrency: int,
    report: Progress,
) -> list[CompositeScore]:
    """Score every method, for each number of parts. Methods that need a router, or an adapter for each part, are left
    out where the bank lacks them. Raises what the engine raises."""
    tasks = {row.task for prompts in groups.values() for rows in prompts for row in rows}
    methods = [method for method in METHODS if _is_supported(method, chooser, tasks)]
    total = len(methods) * sum(parts * len(prompts) for parts, prompts in groups.items())
    done = 0
    semaphore = asyncio.Semaphore(concurrency)
    answers: dict[tuple[str, int, int], list[str]] = {}

    async def converse(method: str, parts: int, number: int, rows: Sequence[EvalRow]) -> None:
        nonlocal done
        given: list[str] = []
        async with semaphore:
            for _ in range(parts):
                job = _job(method, rows, given, suite, chooser)
                answer = (await answerer.answer([job], concurrency=1))[job]
                given.append(answer.text.strip())
                done += 1
                report(done, total)
        answers[method, parts, number] = given

    await run_all(
        converse(method, parts, number, rows)
        for parts, prompts in groups.items()
        for number, rows in enumerate(prompts)
        for method in methods
    )
    return [_score(method, parts, prompts, answers, suite) for parts, prompts in groups.items() for method in methods]


def compose(rows: Sequence[EvalRow]) -> tuple[str, list[int]]:
    """The prompt and the offset in characters at which each question starts."""
    text, starts = "", []
    for number, row in enumerate(rows, start=1):
        text += f"{number}. "
        starts.append(len(text))
        text += f"{row.input.strip()}\n\n"
    return text.rstrip(), starts


def _is_supported(method: str, chooser: Chooser, tasks: set[str]) -> bool:
    if method in ("by request", "by sentence", "by task", "apart"):
        return chooser.router is not None
    return method == "plain" or tasks <= set(chooser.adapters)


def _job(method: str, rows: Sequence[EvalRow], given: Sequence[str], suite: Suite, chooser: Chooser) -> Job:
    """The job for the next answer, after the ones already given."""
    text, starts = compose(rows)
    index = len(given)
    served = parse(SERVED)
    max_tokens = suite.settings.types[rows[index].type].max_tokens
    if method == "by task" and (tasks := _tasks(text, served, rows, chooser)):
        messages, own = tasks[min(index, len(tasks) - 1)]
        return Job(messages[-1].content, own, max_tokens=max_tokens)
    if method == "apart":
        assert chooser.router is not None
        row = rows[index]
        return Job(row.input, chooser.mix(served, row, chooser.router.route([row.input])[0]), max_tokens=max_tokens)
    mixes = [EMPTY_MIX] * len(rows)
    parts: tuple[tuple[int, Mix], ...] = ()
    mix = EMPTY_MIX
    if method == "oracle by part":
        mixes = [chooser.named(row.task) for row in rows]
        parts = tuple(zip(starts, mixes, strict=True))
    elif method == "by request":
        assert chooser.router is not None
        mix = chooser.mix(served, rows[0], chooser.router.route([text])[0])
        mixes = [mix] * len(rows)
    lines = [f"{number}. {answer}\n" for number, answer in enumerate(given, start=1)]
    return Job(
        text,
        mix,
        max_tokens=max_tokens,
        sentence=(served.top_p, suite.settings.max_adapters) if method in ("by sentence", "by task") else None,
        parts=parts,
        begun=tuple(zip([*lines, f"{index + 1}."], mixes, strict=False)),
        stop=("\n",),
    )


def _tasks(text: str, served: Arm, rows: Sequence[EvalRow], chooser: Chooser) -> list[tuple[tuple[Message, ...], Mix]]:
    """The tasks that a server finds in the prompt; none where it answers all of it at once."""
    assert chooser.router is not None
    found = passages_first(chooser.router, [text])
    return divided([Message("user", text)], found, lambda passage: chooser.mix(served, rows[0], passage.routing))


def _score(
    method: str,
    parts: int,
    prompts: Sequence[tuple[EvalRow, ...]],
    answers: Mapping[tuple[str, int, int], Sequence[str]],
    suite: Suite,
) -> CompositeScore:
    by_place: dict[int, list[float]] = defaultdict(list)
    means = []
    for number, rows in enumerate(prompts):
        scores = [
            _part_score(answer, row, suite) for answer, row in zip(answers[method, parts, number], rows, strict=True)
        ]
        means.append(fmean(scores))
        for index, score in enumerate(scores):
            by_place[index].append(score)
    return CompositeScore(
        parts=parts,
        arm=method,
        prompts=len(prompts),
        score=Interval.of(estimate(means, seed=suite.settings.seed)),
        by_place=[100 * fmean(by_place[index]) for index in range(parts)],
        by_prompt=[100 * mean for mean in means],
    )


def _part_score(answer: str, row: EvalRow, suite: Suite) -> float:
    """Score by the first metric of the row's type that reads the answer's text."""
    metric = next((name for name in suite.settings.types[row.type].metrics if name != LIKELIHOOD), "exact_match")
    return METRICS[metric](answer, row)
