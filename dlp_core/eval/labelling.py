"""Label rows by benefit: the right answer of each under the plain backbone and under the adapters that may help.

A row goes through one forward pass for all adapters, as far as they fit into the slots: each runs in its own row of the
batch. What was computed lies in a journal, so that an interrupted labelling goes on, to the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.served_base import ServedBase, check_served
from dlp_core.bank.source import qualified
from dlp_core.engine.activation import activated
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.loading import Loaded, load
from dlp_core.engine.request import Plan
from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.eval.benefit import TEMPERATURE, Scores, pooled, rounded, soft_labels
from dlp_core.eval.journal import RecordJournal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.likelihood import log_likelihoods, unpaged_attention
from dlp_core.eval.options import find_options, format_option
from dlp_core.eval.run import Setup
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.quiet import quiet_transformers
from dlp_core.router.rows import BENEFIT, TaskRow
from dlp_core.store.checkpoints import Interrupted
from dlp_core.store.disk import disk_errors
from dlp_core.store.transfers import Progress, silent
from dlp_core.text.chat import Message, routing_texts
from dlp_core.text.rows import Row

CANDIDATES = 8

_MAX_SLOTS = 64
_PASS_TOKENS = 8192
"""Of all adapters' rows in one forward pass, unless one row alone has more."""


@dataclass(frozen=True, slots=True)
class Question:
    """A row as it is scored."""

    row: Row
    turns: tuple[Message, ...]
    answers: tuple[str, ...]
    """The right answer first, then the other options in the same form, if the prompt lists any."""

    @classmethod
    def of(cls, row: Row) -> Question:
        """Raises InvalidRequest, naming the place, for a row without a prompt or an answer."""
        prompt, output = row.answered()
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return cls(row, turns, (output, *_other_options(turns[-1].content, output)))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row with what was measured of it."""

    row: Row
    candidates: tuple[str, ...]
    """The adapters that were asked."""
    scores: Scores
    labels: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The row as JSON, with its `benefit`."""
        measured: dict[str, Any] = {
            "labels": self.labels,
            "gains": rounded(self.scores.gains()),
            "log_likelihoods": rounded(self.scores.adapters),
            "plain": rounded({"": self.scores.plain})[""],
            "tokens": self.scores.tokens,
        }
        if self.scores.choices is not None and self.scores.plain_choice is not None:
            measured |= {"choices": rounded(self.scores.choices), "plain_choice": round(self.scores.plain_choice, 4)}
        return {**self.row.record, BENEFIT: measured}

    @property
    def best(self) -> str | None:
        """The likeliest adapter; None if it is more likely that none should serve it."""
        return TaskRow.labelled("", self.labels).task


def label_rows(
    rows: Sequence[Row],
    location: str,
    setup: Setup,
    *,
    cache: DiskCache,
    journal: Path | None,
    candidates: int = CANDIDATES,
    temperature: float = TEMPERATURE,
    report: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
) -> list[Labelled]:
    """Label rows with the bank at `location` (see judged_bank.open_bank).

    Asked are the adapter of a row's own task, and the `candidates` that its router thinks likeliest: for the rows of a
    task together, for a row without one alone. `report` counts rows.

    Raises InvalidRequest for a row without an answer or with a prompt that is too long, for a bank that has no router
    and more adapters than `candidates`, BankError for a bank of another base model; Interrupted where it is to `stop`.
    """
    questions = [Question.of(row) for row in rows]
    served = ServedBase.at(setup.base_model)
    with open_bank(location, cache) as bank, closing(RecordJournal(journal, Scores)) as scores:
        check_served(bank.manifest.base_model, served, strict=False)
        asked = choose(questions, bank, candidates)
        found = asyncio.run(
            _score(questions, asked, bank, setup, journal=scores, path=journal, report=report, stop=stop)
        )
    return labelled(questions, asked, found, temperature=temperature)


def labelled(
    questions: Sequence[Question],
    asked: Sequence[tuple[str, ...]],
    scores: Sequence[Scores],
    *,
    temperature: float = TEMPERATURE,
) -> list[Labelled]:
    """The labels of rows that are scored."""
    gains = pooled([each.gains() for each in scores], [question.row.task for question in questions])
    return [
        Labelled(question.row, names, each, soft_labels(own, temperature=temperature))
        for question, names, each, own in zip(questions, asked, scores, gains, strict=True)
    ]


def write(labelled: Sequence[Labelled], path: Path) -> None:
    """Write the rows with their labels as JSON lines, all at once. Raises InvalidRequest, DiskFull or LocalDiskError if
    the file cannot be written."""
    partial = path.with_name(f".{path.name}.part")
    with disk_errors(f"{path}: cannot be written", action="choose another --out"):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(each.record(), ensure_ascii=False, default=str) + "\n" for each in labelled)
        partial.replace(path)


def summary(labelled: Sequence[Labelled]) -> dict[str, Any]:
    """How many rows are served best by their own adapter, by another and by none, and by which."""
    best = [(each.row.task, each.best) for each in labelled]
    return {
        "rows": len(best),
        "own": sum(name is not None and name == task for task, name in best),
        "other": sum(name is not None and name != task for task, name in best),
        "none": sum(name is None for _, name in best),
        "own_hurts": sum(
            name is None and task in each.candidates for (task, name), each in zip(best, labelled, strict=True)
        ),
        "best": dict(Counter(name for _, name in best if name is not None).most_common()),
    }


def choose(questions: Sequence[Question], bank: JudgedBank, candidates: int) -> list[tuple[str, ...]]:
    """The adapters to ask for each row, sorted. Raises InvalidRequest if the bank's router cannot say."""
    adapters = {adapter.name for adapter in bank.manifest.adapters}
    routed = sorted(adapter.name for adapter in bank.manifest.adapters if adapter.routed)
    likely: list[set[str]] = [set(routed)] * len(questions)
    if candidates < len(routed):
        if bank.router is None:
            raise InvalidRequest(
                f"the bank has no router to say which adapters may help; ask all {len(routed)} with --candidates "
                f"{len(routed)}"
            )
        likely = _likeliest(questions, bank, candidates)
    return [
        tuple(sorted(names | ({question.row.task} & adapters if question.row.task else set())))
        for question, names in zip(questions, likely, strict=True)
    ]


def _likeliest(questions: Sequence[Question], bank: JudgedBank, candidates: int) -> list[set[str]]:
    assert bank.router is not None
    routings = bank.router.route_first([routing_texts(question.turns) for question in questions])
    sums: dict[object, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    groups: list[object] = [
        number if question.row.task is None else question.row.task for number, question in enumerate(questions)
    ]
    for group, routing in zip(groups, routings, strict=True):
        for name, probability in routing.probabilities.items():
            sums[group][name] += probability
    best = {
        group: set(sorted(found, key=lambda name: (-found[name], name))[:candidates]) for group, found in sums.items()
    }
    return [best[group] for group in groups]


async def _score(
    questions: Sequence[Question],
    asked: Sequence[tuple[str, ...]],
    bank: JudgedBank,
    setup: Setup,
    *,
    journal: RecordJournal[Scores],
    path: Path | None,
    report: Progress,
    stop: Callable[[], bool],
) -> list[Scores]:
    name = setup.name()
    digests = {adapter.name: adapter.digest for adapter in bank.manifest.adapters}
    keys = [_key(question, names, digests, name) for question, names in zip(questions, asked, strict=True)]
    found = {key: scores for key in keys if (scores := journal.get(key)) is not None}
    pending = {key: number for number, key in enumerate(keys) if key not in found}
    if pending:
        slots = min(_MAX_SLOTS, max(1, *(len(names) for names in asked)))
        config = EngineConfig(slots=slots, max_requests=1, cache_tokens=setup.cache_tokens)
        with quiet_transformers():
            loaded = load(
                setup.base_model, bank.source, config, dtype=setup.dtype, device=setup.device, threads=setup.threads
            )
        with unpaged_attention(loaded.model):
            for key, number in pending.items():
                report(len(found), len(keys))
                if stop():
                    kept = None if path is None or not found else path.parent
                    raise Interrupted(f"stopped after {len(found)} of {len(keys)} rows", kept)
                found[key] = await _score_row(questions[number], asked[number], bank, loaded)
                journal.add(key, found[key])
        loaded.residency.close()
    report(len(keys), len(keys))
    return [found[key] for key in keys]


async def _score_row(question: Question, names: Sequence[str], bank: JudgedBank, loaded: Loaded) -> Scores:
    encode, end = loaded.tokenizer.encode, loaded.tokenizer.eos_token_id
    answers = [[*encode(text, add_special_tokens=False), end] for text in question.answers]
    longest = max(map(len, answers))
    by_prompt: dict[tuple[int, ...], list[str | None]] = defaultdict(list)
    for name in (None, *names):
        prompt = _prompt(question, name, bank, loaded, room=loaded.engine.context - longest)
        by_prompt[prompt].append(name)  # an adapter may bring its own chat template
    found: dict[str | None, list[float]] = {}
    for prompt, group in by_prompt.items():
        length = len(prompt) + sum(map(len, answers))
        size = min(loaded.config.slots, max(1, _PASS_TOKENS // length))
        for first in range(0, len(group), size):
            part = group[first : first + size]
            invocation = loaded.residency.invocation
            plans = [activated(Plan.of(_mix(name, bank)), prompt, invocation) for name in part]
            async with loaded.residency.pinned([each for plan in plans for each in plan.names]) as pins:
                sums = await asyncio.to_thread(
                    log_likelihoods, loaded.model, loaded.fusion, prompt, answers, plans=plans, pins=pins
                )
            found |= dict(zip(part, sums, strict=True))
    right = {name: values[0] for name, values in found.items()}
    scores = Scores(len(answers[0]), right[None], {name: right[name] for name in names})
    if len(answers) == 1:
        return scores
    choices = {name: values[0] - _log_sum(values) for name, values in found.items()}
    return Scores(scores.tokens, scores.plain, scores.adapters, choices[None], {name: choices[name] for name in names})


def _prompt(question: Question, name: str | None, bank: JudgedBank, loaded: Loaded, *, room: int) -> tuple[int, ...]:
    """The prompt in tokens, at most `room`, as a server renders it for this adapter alone."""
    template = None if name is None else bank.source.chat_template(_mix(name, bank).names[0])
    with suppress(PromptTooLong):
        prompt = tuple(loaded.codec.encode_chat(question.turns, chat_template=template).ids)
        if len(prompt) <= room:
            return prompt
    raise InvalidRequest(
        f"{question.row.where}: the prompt and its answer have more than the {loaded.engine.context} tokens that the "
        "model takes; shorten or remove the row"
    )


def _mix(name: str | None, bank: JudgedBank) -> Mix:
    return EMPTY_MIX if name is None else qualified(Mix.of({name: 1.0}), bank.manifest)


def _key(question: Question, names: Sequence[str], digests: Mapping[str, str], setup: str) -> str:
    content = [
        setup,
        [asdict(turn) for turn in question.turns],
        question.answers,
        {name: digests[name] for name in names},
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _other_options(prompt: str, output: str) -> tuple[str, ...]:
    """The wrong options of a multiple choice, in the form in which the right one is given."""
    options = find_options(prompt)
    forms: tuple[Callable[[str], str], ...] = (
        lambda letter: format_option(letter, options),
        lambda letter: f"({letter})",
        lambda letter: letter,
        lambda letter: options[letter],
    )
    for form in forms:
        texts = [form(letter) for letter in options]
        if texts.count(output.strip()) == 1:
            return tuple(text for text in texts if text != output.strip())
    return ()


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values))
