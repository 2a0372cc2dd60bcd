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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from dlp_core.together import Pair

METHODS = ("plain", "by request", "by sentence", "oracle by part", "by task", "apart")


@dataclass(frozen=True, slots=True)
class Way:
    """What answers a composite prompt: one mix, one for each question and its answer, one for each sentence, or prompts
    of its tasks alone."""

    mix: Mix = EMPTY_MIX
    by_part: tuple[Mix, ...] = ()
    sentence: tuple[float, int] | None = None
    """See Job.sentence."""
    apart: Pair | None = None
    """See Job.apart."""
    asked: tuple[tuple[str, Mix], ...] = ()
    """The tasks as prompts of their own, each with its mix; the last one also gives the answers beyond."""

    def job(self, rows: Sequence[EvalRow], given: Sequence[str], suite: Suite) -> Job:
        """The job for the next answer, after the ones already given."""
        index = len(given)
        max_tokens = suite.settings.types[rows[index].type].max_tokens
        if self.asked:
            text, mix = self.asked[min(index, len(self.asked) - 1)]
            return Job(text, mix, max_tokens=max_tokens)
        text, starts = compose(rows)
        mixes = self.by_part or (self.mix,) * len(rows)
        lines = [f"{number}. {answer}\n" for number, answer in enumerate(given, start=1)]
        return Job(
            text,
            self.mix,
            max_tokens=max_tokens,
            sentence=self.sentence,
            parts=tuple(zip(starts, self.by_part, strict=True)) if self.by_part else (),
            begun=tuple(zip([*lines, f"{index + 1}."], mixes, strict=False)),
            stop=("\n",),
            apart=self.apart,
        )


async def converse(
    rows: Sequence[EvalRow], way: Way, suite: Suite, answerer: Answerer, *, answered: Callable[[], None]
) -> list[str]:
    """The answers to a composite prompt, one after the other; `answered` is called after each. Raises what the engine
    raises."""
    given: list[str] = []
    for _ in rows:
        job = way.job(rows, given, suite)
        given.append((await answerer.answer([job], concurrency=1))[job].text.strip())
        answered()
    return given


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

    def answered() -> None:
        nonlocal done
        done += 1
        report(done, total)

    async def ask(method: str, parts: int, number: int, rows: Sequence[EvalRow]) -> None:
        async with semaphore:
            way = _way(method, rows, chooser)
            answers[method, parts, number] = await converse(rows, way, suite, answerer, answered=answered)

    await run_all(
        ask(method, parts, number, rows)
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


def part_scores(answers: Sequence[str], rows: Sequence[EvalRow], suite: Suite) -> list[float]:
    """The score of each answer, from 0 to 1, by the first metric of its row's type that reads text."""
    scores = []
    for answer, row in zip(answers, rows, strict=True):
        metrics = suite.settings.types[row.type].metrics
        metric = next((name for name in metrics if name != LIKELIHOOD), "exact_match")
        scores.append(METRICS[metric](answer, row))
    return scores


def _is_supported(method: str, chooser: Chooser, tasks: set[str]) -> bool:
    if method in ("by request", "by sentence", "by task", "apart"):
        return chooser.router is not None
    return method == "plain" or tasks <= set(chooser.adapters)


def _way(method: str, rows: Sequence[EvalRow], chooser: Chooser) -> Way:
    served = parse(SERVED)
    if method == "oracle by part":
        return Way(by_part=tuple(chooser.named(row.task) for row in rows))
    if method == "by request":
        assert chooser.router is not None
        return Way(chooser.mix(served, rows[0], chooser.router.route([compose(rows)[0]])[0]))
    by_sentence = Way(sentence=(served.top_p, chooser.suite.settings.max_adapters))
    if method == "by sentence":
        return by_sentence
    if method == "by task":
        tasks = _tasks(compose(rows)[0], served, rows, chooser)
        return Way(asked=tuple((messages[-1].content, mix) for messages, mix in tasks)) if tasks else by_sentence
    if method == "apart":
        assert chooser.router is not None
        routings = chooser.router.route([row.input for row in rows])
        return Way(
            asked=tuple(
                (row.input, chooser.mix(served, row, routing)) for row, routing in zip(rows, routings, strict=True)
            )
        )
    return Way()


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
        scores = part_scores(answers[method, parts, number], rows, suite)
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
