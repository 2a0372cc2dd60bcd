"""What was found of pairs of adapters: do they spoil each other's answers? Stored, loaded, and held against a bank.

In a bank's store the findings live in pairs/<suite>-<suite digest>-<time>.json and are never overwritten. They are
about the adapters, by their digests, so they hold for every bank that has these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, ValidationError

from dlp_core.bank.manifest import BankManifest
from dlp_core.errors import BankError, InvalidRequest
from dlp_core.eval.results import BankInfo, Interval, SuiteInfo
from dlp_core.eval.statistics import LEVEL, estimate
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import Digest
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem
from dlp_core.together import Pair

MIN_ROWS = 5
"""Fewer prompts that can lose judge nothing: that four of four answer worse is one chance in sixteen."""

_FOLDER = "pairs/"
_TIME = "%Y%m%dT%H%M%S.%fZ"
_READ = 100
"""Findings of a store that are read, the newest first."""


class Drop(Record):
    """The same prompts under both adapters and without one of them, in points."""

    rows: int
    can_lose: int
    """Prompts that score anything apart."""
    together: float
    apart: float
    difference: Interval
    """Of together minus apart, prompt by prompt."""

    @classmethod
    def of(cls, together: Sequence[float], apart: Sequence[float], *, level: float = LEVEL) -> Self:
        """Of the scores of each prompt, from 0 to 1."""
        gains = [one - other for one, other in zip(together, apart, strict=True)]
        return cls(
            rows=len(gains),
            can_lose=sum(other > 0 for other in apart),
            together=100 * sum(together) / len(gains),
            apart=100 * sum(apart) / len(gains),
            difference=Interval.of(estimate(gains, level=level)),
        )

    @property
    def tells(self) -> bool:
        """Whether a loss could be more than chance."""
        return self.can_lose >= MIN_ROWS

    def counts(self, max_drop: float) -> bool:
        """Whether more than `max_drop` points were lost, and more than noise, as in `dlp eval gate`."""
        return self.tells and self.difference.mean < -max_drop and self.difference.high < 0


class OwnRows(Record):
    """The rows of one adapter's task under both adapters at half weight each."""

    alone: Drop
    """Against the adapter alone."""
    without_other: Drop
    """Against the adapter alone at half weight. What is lost beside `alone` and not beside this is dilution."""
    without_own: Drop
    """Against the other adapter alone at half weight. What is lost beside that as well, neither does without the
    other."""

    @property
    def tells(self) -> bool:
        """Whether they can show that both are harmless together: prompts that each alone answers."""
        return all(drop.tells for drop in (self.alone, self.without_other, self.without_own))

    @property
    def least(self) -> Drop:
        """The smaller loss, with one of them taken out."""
        return max(self.without_other, self.without_own, key=lambda drop: drop.difference.mean)

    def spoiled(self, max_drop: float) -> bool:
        return all(drop.counts(max_drop) for drop in (self.alone, self.without_other, self.without_own))


class PairFound(Record):
    """What was found of one pair."""

    adapters: tuple[str, str]
    """In alphabetical order."""
    digests: tuple[Digest, Digest]
    joined: Drop | None
    """The prompts that the router mixes both for, as it answers them with this pair and without; None: it joins them
    for none."""
    own: dict[str, OwnRows]
    """By adapter; without those that the suite has no rows of."""
    spoiled: bool

    @property
    def judged(self) -> bool:
        """Whether there are prompts enough to tell."""
        return (self.joined is not None and self.joined.tells) or any(own.tells for own in self.own.values())

    def losses(self, max_drop: float) -> dict[str, Drop]:
        """What was spoiled, by what it is called."""
        found = {}
        if self.joined is not None and self.joined.counts(max_drop):
            found["where the router joins them"] = self.joined
        return found | {f"rows of {name}": own.alone for name, own in self.own.items() if own.spoiled(max_drop)}


class PairFindings(Record):
    """One run of `dlp eval pairs`."""

    format: Literal[1] = 1
    created: AwareDatetime
    suite: SuiteInfo
    bank: BankInfo
    setup: str
    """The base model's name and digest, and the precision it ran in."""
    seconds: float
    max_drop: float
    """Points that a pair may lose."""
    pairs: list[PairFound]
    """The most harmful first."""

    @property
    def spoiled(self) -> list[Pair]:
        return [pair.adapters for pair in self.pairs if pair.spoiled]

    def allowed(self, listed: Iterable[Pair] | None) -> list[Pair]:
        """The pairs to list as allowed: those that were judged and are not spoiled, and, of those `listed` now, those
        that were not judged."""
        judged = {pair.adapters for pair in self.pairs if pair.judged}
        good = {pair.adapters for pair in self.pairs if pair.judged and not pair.spoiled}
        return sorted(good | {pair for pair in listed or () if pair not in judged})


def spoiled_pairs(bank: BankManifest, findings: Iterable[PairFindings]) -> list[Pair]:
    """The pairs that spoil each other, by the newest finding of each, and that the bank lets be mixed."""
    digests = {adapter.name: adapter.digest for adapter in bank.adapters}
    together = bank.together
    newest: dict[Pair, PairFound] = {}
    for found in sorted(findings, key=lambda one: one.created, reverse=True):
        for pair in found.pairs:
            if pair.judged and tuple(digests.get(name) for name in pair.adapters) == pair.digests:
                newest.setdefault(pair.adapters, pair)
    return sorted(names for names, pair in newest.items() if pair.spoiled and together.allows(*names))


def describe(pairs: Sequence[Pair]) -> str:
    """The pairs as a sentence names them."""
    return ", ".join(f"{one} with {other}" for one, other in pairs)


def read(path: Path) -> PairFindings:
    """Findings in a file. Raises InvalidRequest if it cannot be read or holds something else."""
    try:
        with disk_errors(f"{path}: cannot be read"):
            return PairFindings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidRequest(f"{path}: not the findings of `dlp eval pairs` ({first_problem(error)})") from None


def save(store: AdapterStore, findings: PairFindings) -> str:
    """Store findings beside their bank and return the key. Raises StoreUnavailable, or Conflict if findings of the
    same microsecond exist."""
    suite = f"{findings.suite.name}-{findings.suite.digest}"
    key = f"{_FOLDER}{suite}-{findings.created:{_TIME}}.json"
    store.put(key, findings.model_dump_json(indent=1).encode() + b"\n", if_none_match=True)
    return key


def stored(store: AdapterStore) -> list[PairFindings]:
    """The newest findings in a store. Raises BankError, naming the key, for one that is damaged, StoreUnavailable."""
    keys = sorted((info.key for info in store.list(_FOLDER)), key=lambda key: key.rpartition("-")[2], reverse=True)
    found = []
    for key in keys[:_READ]:
        try:
            found.append(PairFindings.model_validate_json(store.get(key).data))
        except ValidationError as error:
            raise BankError(f"{key!r} in {store.uri} is damaged ({first_problem(error)}); delete it") from None
    return found
