"""Prompts that ask the questions of several tasks at once, as DLP-LoRA (section 4) and MeteoRA (arXiv 2405.13053) do.

    1. <question>

    2. <question>

An adapter was made for one question at a time, so the answers are asked for one by one: what the assistant is given to
begin with is "1.", then "1. <its first answer>\n2.", and it goes on to the end of the line. Four ways:

    plain            the backbone alone
    by request       the mix the router gives the whole prompt
    by sentence      a mix for each sentence of the prompt and of the answers
    oracle by part   each question, and its answer, under its own adapter
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from dlp_core.eval.answers import Answerer, Job, together
from dlp_core.eval.arms import SERVED, Chooser, parse
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.results import CompositeScore, Interval
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.statistics import estimate
from dlp_core.eval.suite import Suite
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.store.transfers import Progress

WAYS = ("plain", "by request", "by sentence", "oracle by part")


async def judge_composites(
    suite: Suite,
    groups: Mapping[int, Sequence[tuple[EvalRow, ...]]],
    chooser: Chooser,
    answerer: Answerer,
    *,
    at_once: int,
    report: Progress,
) -> list[CompositeScore]:
    """Scores of all ways, by number of parts. Ways that need a router, or an adapter for each part, are left out where
    the bank lacks them. Raises what the engine raises."""
    tasks = {row.task for prompts in groups.values() for rows in prompts for row in rows}
    ways = [way for way in WAYS if _possible(way, chooser, tasks)]
    total = len(ways) * sum(parts * len(prompts) for parts, prompts in groups.items())
    done = 0
    room = asyncio.Semaphore(at_once)
    said: dict[tuple[str, int, int], list[str]] = {}

    async def converse(way: str, parts: int, number: int, rows: Sequence[EvalRow]) -> None:
        nonlocal done
        answers: list[str] = []
        async with room:
            for _ in range(parts):
                job = _job(way, rows, answers, suite, chooser)
                answer = (await answerer.answer([job], at_once=1))[job]
                answers.append(answer.text.strip())
                done += 1
                report(done, total)
        said[way, parts, number] = answers

    await together(
        converse(way, parts, number, rows)
        for parts, prompts in groups.items()
        for number, rows in enumerate(prompts)
        for way in ways
    )
    return [_score(way, parts, prompts, said, suite) for parts, prompts in groups.items() for way in ways]


def compose(rows: Sequence[EvalRow]) -> tuple[str, list[int]]:
    """The prompt, and where each question begins in it."""
    text, starts = "", []
    for number, row in enumerate(rows, start=1):
        text += f"{number}. "
        starts.append(len(text))
        text += f"{row.input.strip()}\n\n"
    return text.rstrip(), starts


def _possible(way: str, chooser: Chooser, tasks: set[str]) -> bool:
    if way in ("by request", "by sentence"):
        return chooser.router is not None
    return way == "plain" or tasks <= set(chooser.adapters)


def _job(way: str, rows: Sequence[EvalRow], answers: Sequence[str], suite: Suite, chooser: Chooser) -> Job:
    """The request for the answer after those that were given."""
    text, starts = compose(rows)
    place = len(answers)
    served = parse(SERVED)
    mixes = [EMPTY_MIX] * len(rows)
    parts: tuple[tuple[int, Mix], ...] = ()
    mix = EMPTY_MIX
    if way == "oracle by part":
        mixes = [Mix.of({row.task: 1.0}) for row in rows]
        parts = tuple(zip(starts, mixes, strict=True))
    elif way == "by request":
        assert chooser.router is not None
        mix = chooser.mix(served, rows[0], chooser.router.route([text])[0])
        mixes = [mix] * len(rows)
    lines = [f"{number}. {answer}\n" for number, answer in enumerate(answers, start=1)]
    return Job(
        text,
        mix,
        max_tokens=suite.settings.types[rows[place].type].max_tokens,
        sentence=(served.top_p, suite.settings.max_adapters) if way == "by sentence" else None,
        parts=parts,
        begun=tuple(zip([*lines, f"{place + 1}."], mixes, strict=False)),
        stop=("\n",),
    )


def _score(
    way: str,
    parts: int,
    prompts: Sequence[tuple[EvalRow, ...]],
    said: Mapping[tuple[str, int, int], Sequence[str]],
    suite: Suite,
) -> CompositeScore:
    by_place: dict[int, list[float]] = defaultdict(list)
    means = []
    for number, rows in enumerate(prompts):
        scores = [_part_score(answer, row, suite) for answer, row in zip(said[way, parts, number], rows, strict=True)]
        means.append(fmean(scores))
        for place, score in enumerate(scores):
            by_place[place].append(score)
    return CompositeScore(
        parts=parts,
        arm=way,
        prompts=len(prompts),
        score=Interval.of(estimate(means, seed=suite.settings.seed)),
        by_place=[100 * fmean(by_place[place]) for place in range(parts)],
    )


def _part_score(answer: str, row: EvalRow, suite: Suite) -> float:
    """By the first metric of the row's type that looks at the text."""
    metric = next((name for name in suite.settings.types[row.type].metrics if name != LIKELIHOOD), "exact_match")
    return METRICS[metric](answer, row)
