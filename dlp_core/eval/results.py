"""What an evaluation found, as it is stored, read back and compared. Scores are points from 0 to 100.

In the store of a bank: evals/<bank version>/<suite>-<suite digest>-<time>.json. Nothing there is ever overwritten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError

from dlp_core.adapter.names import validate_name
from dlp_core.errors import BankError, InvalidRequest, NotFound
from dlp_core.eval.statistics import LEVEL, Estimate, estimate, estimate_over_tasks
from dlp_core.store.disk import disk_errors
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem

_FOLDER = "evals/"
_TIME = "%Y%m%dT%H%M%S.%fZ"


class Interval(Record):
    """A mean with its 95 % interval, in points."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Estimate) -> Self:
        return cls(mean=100 * found.mean, low=100 * found.low, high=100 * found.high)


class TaskScore(Record):
    """One arm on the rows of one task."""

    rows: int
    score: Interval
    metrics: dict[str, float]
    """Means of all metrics of the task's types, in points."""


class ArmScore(Record):
    """One arm. The score is the mean over tasks, each of which counts the same."""

    name: str
    score: Interval
    tasks: dict[str, TaskScore]
    adapters: float
    """Mean number of adapters in a mix."""
    plain: float
    """Share of rows that were left to the backbone alone."""
    choices: str
    """A digest of what it chose for each row: two arms of one digest are one and the same on these rows."""


class RouterScore(Record):
    """How the router saw the rows of tasks it knows."""

    accuracy: float
    """Share of rows whose likeliest adapter is their own, refused or not."""
    refused: float
    """Share it called "none of these"."""
    confusion: dict[str, dict[str, int]]
    """Task to likeliest adapter to rows."""


class CompositeScore(Record):
    """One way to answer prompts that ask so many tasks' questions."""

    parts: int
    arm: str
    prompts: int
    score: Interval
    """Mean over prompts of the mean over their parts."""
    by_place: list[float]
    """Mean score of the first part, the second ..."""


class BankOfResults(Record):
    """Which bank was judged."""

    version: str
    digest: str
    base_model: str
    adapters: int
    router: str | None


class SuiteOfResults(Record):
    """On what. Results of one digest can be compared row by row."""

    name: str
    digest: str
    rows: int
    seed: int


class RowScore(Record):
    """One row: its score under each arm that applies to it, from 0 to 1."""

    task: str
    scores: dict[str, float]


class Results(Record):
    """One evaluation."""

    format: Literal[1] = 1
    created: AwareDatetime
    suite: SuiteOfResults
    bank: BankOfResults
    setup: str
    """The base model's digest and the precision it ran in."""
    seconds: float
    """Of the run that completed it; a resumed one has done less."""
    arms: list[ArmScore] = Field(min_length=1)
    router: RouterScore | None
    composites: list[CompositeScore]
    rows: dict[str, RowScore]
    """By row id."""

    def arm(self, name: str) -> ArmScore:
        """Raises InvalidRequest if it was not among the arms."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise InvalidRequest(
            f"arm {name!r} is not in the results of bank {self.bank.version}; there are: "
            f"{', '.join(arm.name for arm in self.arms)}"
        )

    def distinct(self) -> dict[str, list[str]]:
        """Arms that chose differently for some row, in order, each with those that chose like it."""
        first: dict[str, str] = {}
        found: dict[str, list[str]] = {}
        for arm in self.arms:
            name = first.setdefault(arm.choices, arm.name)
            if name == arm.name:
                found[name] = []
            else:
                found[name].append(arm.name)
        return found

    def by_task(self, arm: str) -> dict[str, dict[str, float]]:
        """Task to row id to score. Raises as `arm`."""
        self.arm(arm)
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for id_, row in self.rows.items():
            if arm in row.scores:
                found[row.task][id_] = row.scores[arm]
        return dict(found)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one side has more than another on the rows both have, in points."""

    overall: Interval
    tasks: dict[str, Interval]

    def worse(self, tolerance: float) -> list[str]:
        """Tasks that lost more than `tolerance` points, and more than their noise."""
        return [task for task, found in self.tasks.items() if found.mean < -tolerance and found.high < 0]

    @property
    def better(self) -> list[str]:
        """Tasks that gained more than their noise."""
        return [task for task, found in self.tasks.items() if found.low > 0]


def difference(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> Difference:
    """From task to row id to score, of both sides. The level of single tasks' intervals is raised (Bonferroni): of
    twenty tasks without a difference, one would seem to have one otherwise. Raises InvalidRequest without a common row.
    """
    pairs = {
        task: [score - theirs[task][id_] for id_, score in rows.items() if id_ in theirs[task]]
        for task, rows in ours.items()
        if task in theirs
    }
    pairs = {task: rows for task, rows in pairs.items() if rows}
    if not pairs:
        raise InvalidRequest("the two results have no row in common; evaluate both on the same suite")
    level = 1 - (1 - LEVEL) / len(pairs)
    return Difference(
        Interval.of(estimate_over_tasks(pairs)),
        {task: Interval.of(estimate(rows, level=level)) for task, rows in pairs.items()},
    )


def between_arms(results: Results, arm: str, than: str) -> Difference:
    """What one arm has more than another. Raises InvalidRequest if one is missing."""
    return difference(results.by_task(arm), results.by_task(than))


def between_banks(new: Results, old: Results, arm: str) -> Difference:
    """What `new` has more than `old` under one arm. Raises InvalidRequest for results of different suites."""
    if new.suite.digest != old.suite.digest:
        raise InvalidRequest(
            f"bank {new.bank.version} was judged on suite {new.suite.name} {new.suite.digest}, bank "
            f"{old.bank.version} on {old.suite.name} {old.suite.digest}; evaluate both on the same suite"
        )
    return difference(new.by_task(arm), old.by_task(arm))


def read(path: Path) -> Results:
    """Results from a file. Raises InvalidRequest."""
    try:
        with disk_errors(f"{path}: cannot be read"):
            return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidRequest(f"{path}: not the results of an evaluation ({first_problem(error)})") from None


def keep(store: AdapterStore, results: Results) -> str:
    """Stores results beside their bank; returns the key. Raises StoreUnavailable, or Conflict if results of the same
    microsecond are there."""
    key = f"{_prefix(results.bank.version)}{_name(results)}-{results.created:{_TIME}}.json"
    store.put(key, results.model_dump_json(indent=1).encode() + b"\n", if_none_match=True)
    return key


def kept(store: AdapterStore, version: str, *, suite: str | None = None, arms: Sequence[str] = ()) -> Results:
    """The newest results of a bank version that have all of `arms`; `suite` is a name, or a name and digest joined by
    '-'. Raises NotFound if there are none, BankError if they are damaged."""
    prefix = _prefix(validate_name(version))
    for info in sorted(store.list(prefix), key=lambda info: _time(info.key), reverse=True):
        name = info.key.removeprefix(prefix)
        if suite is None or name.startswith(f"{suite}-"):
            try:
                results = Results.model_validate_json(store.get(info.key).data)
            except ValidationError as error:
                raise BankError(f"{info.key!r} in {store.uri} is damaged ({first_problem(error)}); delete it") from None
            if set(arms) <= {arm.name for arm in results.arms}:
                return results
    about = f" on suite {suite}" if suite else ""
    raise NotFound(
        f"{store.uri} keeps no results of bank {version}{about}{' with arm ' + ', '.join(arms) if arms else ''}; "
        "run dlp eval --suite SUITE --bank URI#VERSION"
    )


def _prefix(version: str) -> str:
    return f"{_FOLDER}{version}/"


def _name(results: Results) -> str:
    return f"{results.suite.name}-{results.suite.digest}"


def _time(key: str) -> datetime:
    try:
        return datetime.strptime(key.rpartition("-")[2], f"{_TIME}.json")
    except ValueError:
        return datetime.min
