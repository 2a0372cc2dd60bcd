"""Judges pairs of adapters: the same prompts with both and without one, in one engine.

    joined      the suite's rows and composite prompts whose mix has both, as the router chooses it when any adapters
                may run together. Compared with what the router would choose if this pair might not: what the bank's
                list would change, and nothing else.
    own rows    the rows of each one's own task under 0.5 of each: a pair may collude where the router joins it for no
                prompt of the suite. Compared with their adapter alone, and with the mix without the one and without
                the other: a loss counts if it is one beside all three. An adapter at half weight answers worse anyway,
                and another task's adapter spoils answers without any help; neither is collusion.

A loss counts as in the gate: more than `max_drop` points, and a whole interval below zero. The level of a pair's
intervals is raised by the number of its comparisons. It is not raised by the number of pairs: of forty harmless pairs
one may thus be called spoiled, which costs a mix, while a spoiled pair that is overlooked costs answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.served_base import ServedBase, check_served
from dlp_core.decision import usable
from dlp_core.errors import InvalidRequest
from dlp_core.eval.answers import Answerer, Job, run_all
from dlp_core.eval.arms import SERVED, Chooser, parse
from dlp_core.eval.composite import Way, compose, converse, part_scores
from dlp_core.eval.evaluation import Phase, describe_bank, describe_suite
from dlp_core.eval.journal import Answer, Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.pairs import Drop, OwnRows, PairFindings, PairFound, save
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.run import Setup, answering
from dlp_core.eval.statistics import LEVEL
from dlp_core.eval.suite import Suite, draw_composites
from dlp_core.eval.trials import Trial, ask
from dlp_core.mix import Mix
from dlp_core.router import restricted
from dlp_core.router.passages import passages
from dlp_core.store.protocol import AdapterStore
from dlp_core.together import Pair, pair_of

MAX_DROP = 1.0
"""Points that a pair may lose."""
_HALF = 0.5

Rows = tuple[EvalRow, ...]
"""Of one composite prompt."""


@dataclass(frozen=True, slots=True)
class _Own:
    """The trials of one row of an adapter's task."""

    together: Trial
    alone: Trial
    without_other: Trial
    without_own: Trial

    @property
    def trials(self) -> tuple[Trial, ...]:
        return (self.together, self.alone, self.without_other, self.without_own)


@dataclass(slots=True)
class _Asked:
    """What is asked to judge one pair."""

    rows: list[tuple[Trial, Trial]] = field(default_factory=list)
    """Joined, each with the pair and without."""
    prompts: list[tuple[Rows, Way, Way]] = field(default_factory=list)
    """Composite prompts, the same."""
    own: dict[str, list[_Own]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan_pairs` found to ask."""

    pairs: Mapping[Pair, _Asked]
    adapters: int
    """Of the bank."""

    @property
    def jobs(self) -> list[Job]:
        """Each once, in the order of the pairs: neighbours in a batch run under different mixes."""
        trials = [
            trial
            for asked in self.pairs.values()
            for trial in (
                *(one for both in asked.rows for one in both),
                *(one for rows in asked.own.values() for own in rows for one in own.trials),
            )
        ]
        return list(dict.fromkeys(job for trial in trials for job in trial.jobs))

    @property
    def prompts(self) -> list[tuple[Rows, Way]]:
        """Each composite prompt in each way, once."""
        asked = [(rows, way) for asked in self.pairs.values() for rows, *ways in asked.prompts for way in ways]
        return list(dict.fromkeys(asked))

    @property
    def answers(self) -> int:
        """How many answers all of it takes."""
        return len(self.jobs) + sum(len(rows) for rows, _ in self.prompts)


def run_pairs(
    suite: Suite,
    location: str,
    setup: Setup,
    *,
    every: bool,
    max_drop: float = MAX_DROP,
    cache: DiskCache,
    journal: Path | None,
    phase: Phase,
    announce: Callable[[Plan], None] = lambda _: None,
    history: AdapterStore | None = None,
) -> tuple[PairFindings, BankManifest]:
    """Judge the pairs of the bank at `location` (see judged_bank.open_bank) that its router joins on the suite or a
    recipe mixes, or `every` pair of its adapters; save what is found in `history`, or else in the bank's store, if it
    has one. What the bank allows together now makes no difference.

    `announce` is called before the model is loaded, `journal` is the file that records answers. Raises InvalidRequest
    for a bank without a router (unless `every`) or with fewer than two adapters, BankError for a bank of another base
    model, and what reading the bank and the engine raise.
    """
    started = time.perf_counter()
    served = ServedBase.at(setup.base_model)
    with open_bank(location, cache) as bank, closing(Journal(journal)) as open_journal:
        check_served(bank.manifest.base_model, served, strict=False)
        free = replace(bank, manifest=bank.manifest.model_copy(update={"allowed_together": None}))
        chooser = _chooser(suite, free)
        plan = plan_pairs(chooser, free.manifest, every=every)
        announce(plan)
        pairs: list[PairFound] = []
        if plan.pairs:
            pairs = asyncio.run(_judge(plan, chooser, free, setup, open_journal, max_drop=max_drop, phase=phase))
        findings = PairFindings(
            created=datetime.now(UTC),
            suite=describe_suite(suite),
            bank=describe_bank(bank),
            setup=setup.name(),
            seconds=round(time.perf_counter() - started, 1),
            max_drop=max_drop,
            pairs=pairs,
        )
        if (store := history or bank.store) is not None:
            save(store, findings)
        return findings, bank.manifest


def plan_pairs(chooser: Chooser, bank: BankManifest, *, every: bool) -> Plan:
    """What to ask of which pairs. `chooser` allows any together. Raises InvalidRequest if there can be no pair."""
    names = [adapter.name for adapter in bank.adapters]
    if len(names) < 2:
        raise InvalidRequest(f"bank {bank.version} has one adapter; a pair takes two")
    if chooser.router is None and not every:
        raise InvalidRequest(
            f"bank {bank.version} has no router that joins adapters; --all judges every pair of its adapters"
        )
    pairs: dict[Pair, _Asked] = defaultdict(_Asked)
    _join_rows(chooser, pairs)
    _join_composites(chooser, pairs)
    for recipe in bank.recipes:
        for pair in combinations(recipe.mix.names, 2):
            pairs[pair_of(*pair)]  # judged on own rows, if the router joins it for no prompt
    if every:
        for pair in combinations(names, 2):
            pairs[pair_of(*pair)]
    for pair, asked in pairs.items():
        for name in pair:
            if rows := [row for row in chooser.suite.rows if row.task == name]:
                asked.own[name] = [_own(row, pair, chooser.suite) for row in rows]
    return Plan(dict(sorted(pairs.items())), len(names))


def _chooser(suite: Suite, bank: JudgedBank) -> Chooser:
    manifest, router = bank.manifest, bank.router
    if router is not None:
        router = restricted(router, usable(manifest, None, max_adapters=suite.settings.max_adapters))
    return Chooser(suite, router, manifest.names, manifest.recipe_mixes, manifest.together)


def _without(chooser: Chooser, pair: Pair) -> Chooser:
    return replace(chooser, together=replace(chooser.together, apart=pair))


def _pairs_of(mix: Mix) -> list[Pair]:
    return [pair_of(*pair) for pair in combinations(mix.names, 2)]


def _join_rows(chooser: Chooser, pairs: dict[Pair, _Asked]) -> None:
    if chooser.router is None:
        return
    suite, served = chooser.suite, parse(SERVED)
    routings = chooser.router.route_first([row.routing_texts for row in suite.rows])
    for row, routing in zip(suite.rows, routings, strict=True):
        mix = chooser.mix(served, row, routing)
        for pair in _pairs_of(mix):
            without = _without(chooser, pair).mix(served, row, routing)
            pairs[pair].rows.append((ask(row, mix, suite), ask(row, without, suite)))


def _join_composites(chooser: Chooser, pairs: dict[Pair, _Asked]) -> None:
    """With one mix for the request, and with one for each sentence."""
    if chooser.router is None:
        return
    suite, served = chooser.suite, parse(SERVED)
    sentence = (served.top_p, suite.settings.max_adapters)
    for rows in [rows for prompts in draw_composites(suite).values() for rows in prompts]:
        text = compose(rows)[0]
        [routing] = chooser.router.route([text])
        mix = chooser.mix(served, rows[0], routing)
        for pair in _pairs_of(mix):
            without = _without(chooser, pair).mix(served, rows[0], routing)
            pairs[pair].prompts.append((rows, Way(mix), Way(without)))
        mixes = [chooser.mix(served, rows[0], part.routing) for part in passages(chooser.router, text, routing)]
        if len(mixes) > 1:  # otherwise it is the mix of the request
            for pair in dict.fromkeys(pair for part in mixes for pair in _pairs_of(part)):
                pairs[pair].prompts.append((rows, Way(sentence=sentence), Way(sentence=sentence, apart=pair)))


def _own(row: EvalRow, pair: Pair, suite: Suite) -> _Own:
    other = pair[0] if pair[1] == row.task else pair[1]
    mixes = (dict.fromkeys(pair, _HALF), {row.task: 1.0}, {row.task: _HALF}, {other: _HALF})
    return _Own(*(ask(row, Mix.of(mix), suite) for mix in mixes))


async def _judge(
    plan: Plan, chooser: Chooser, bank: JudgedBank, setup: Setup, journal: Journal, *, max_drop: float, phase: Phase
) -> list[PairFound]:
    async with answering(bank, chooser.router, setup, journal) as answerer:
        answers = await answerer.answer(plan.jobs, concurrency=setup.concurrency, report=phase("answer"))
        conversations = await _converse(plan, chooser.suite, answerer, setup.concurrency, phase)
    digests = {adapter.name: adapter.digest for adapter in bank.manifest.adapters}
    answered = _Answered(answers, conversations, chooser.suite, digests)
    found = [answered.found(pair, asked, max_drop=max_drop) for pair, asked in plan.pairs.items()]
    return sorted(found, key=lambda one: (not one.spoiled, min(map(_mean, _drops(one)), default=0.0)))


async def _converse(
    plan: Plan, suite: Suite, answerer: Answerer, concurrency: int, phase: Phase
) -> dict[tuple[Rows, Way], float]:
    """The mean score of each composite prompt in each way."""
    report, done = phase("composites"), 0
    total = sum(len(rows) for rows, _ in plan.prompts)
    scores: dict[tuple[Rows, Way], float] = {}
    semaphore = asyncio.Semaphore(concurrency)

    def answered() -> None:
        nonlocal done
        done += 1
        report(done, total)

    async def one(rows: Rows, way: Way) -> None:
        async with semaphore:
            given = await converse(rows, way, suite, answerer, answered=answered)
        scores[rows, way] = fmean(part_scores(given, rows, suite))

    await run_all(one(rows, way) for rows, way in plan.prompts)
    return scores


@dataclass(frozen=True, slots=True)
class _Answered:
    """All that was answered."""

    answers: Mapping[Job, Answer]
    conversations: Mapping[tuple[Rows, Way], float]
    suite: Suite
    digests: Mapping[str, str]

    def found(self, pair: Pair, asked: _Asked, *, max_drop: float) -> PairFound:
        """What it says of one pair."""
        both = [
            (one.score(self.answers, self.suite), other.score(self.answers, self.suite)) for one, other in asked.rows
        ]
        both += [(self.conversations[rows, one], self.conversations[rows, other]) for rows, one, other in asked.prompts]
        level = 1 - (1 - LEVEL) / max(1, len(asked.own) + bool(both))
        joined = Drop.of([one for one, _ in both], [other for _, other in both], level=level) if both else None
        own = {}
        for name, rows in asked.own.items():
            together = self._scores([row.together for row in rows])
            own[name] = OwnRows(
                alone=Drop.of(together, self._scores([row.alone for row in rows]), level=level),
                without_other=Drop.of(together, self._scores([row.without_other for row in rows]), level=level),
                without_own=Drop.of(together, self._scores([row.without_own for row in rows]), level=level),
            )
        digests = self.digests[pair[0]], self.digests[pair[1]]
        found = PairFound(adapters=pair, digests=digests, joined=joined, own=own, spoiled=False)
        return found.model_copy(update={"spoiled": bool(found.losses(max_drop))})

    def _scores(self, trials: Sequence[Trial]) -> list[float]:
        return [trial.score(self.answers, self.suite) for trial in trials]


def _drops(found: PairFound) -> list[Drop]:
    return [*([] if found.joined is None else [found.joined]), *(own.least for own in found.own.values())]


def _mean(drop: Drop) -> float:
    return drop.difference.mean
