"""Results of an evaluation: stored, loaded and compared. Scores are points from 0 to 100.

In a bank's store they live in evals/<bank version>/<suite>-<suite digest>-<time>.json and are never overwritten.
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
    def of(cls, estimate: Estimate) -> Self:
        return cls(mean=100 * estimate.mean, low=100 * estimate.low, high=100 * estimate.high)


class Cost(Record):
    """What the answers of one arm cost, as measured while they were given."""

    answers: int
    """Answers that were measured: all but those from a journal without times."""
    prompt_tokens: int
    """Tokens read, over all answers."""
    completion_tokens: int
    """Tokens written, over all answers."""
    seconds: float
    """Mean over answers, from the question to the last token, beside the other requests of the batch."""
    seconds_p95: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens that one answer writes in a second."""
        return self.completion_tokens / (self.seconds * self.answers) if self.seconds else 0.0


class TaskScore(Record):
    """One arm on the rows of one task."""

    rows: int
    score: Interval
    metrics: dict[str, float]
    """Mean of each metric of the task's row types, in points."""


class ArmScore(Record):
    """One arm. The score is the mean over tasks, all weighted equally."""

    name: str
    score: Interval
    tasks: dict[str, TaskScore]
    adapters: float
    """Mean number of adapters in a mix."""
    plain: float
    """Share of rows answered by the backbone alone."""
    choices: str
    """Digest of the choices for all rows: two arms with the same digest are identical on these rows."""
    cost: Cost | None = None
    """None if no answer was measured."""


class RouterScore(Record):
    """How the router routed the rows of tasks it knows."""

    accuracy: float
    """Share of rows whose likeliest adapter is their own task's, refused or not."""
    refused: float
    """Share of rows the router called "none of these"."""
    confusion: dict[str, dict[str, int]]
    """Task to likeliest adapter to number of rows."""
    seconds: float | None = None
    """Time to route one prompt, mean over the rows, all routed in one call."""


class CompositeScore(Record):
    """One method on the prompts of `parts` questions, each of another task."""

    parts: int
    arm: str
    prompts: int
    score: Interval
    """Mean over prompts of the mean over their parts."""
    by_place: list[float]
    """Mean score of the first part, of the second, and so on."""
    by_prompt: list[float] | None = None
    """Mean score of each prompt, in the same order under every method; None in results of older versions."""


class BankInfo(Record):
    """The bank that was evaluated. What older versions did not record is None."""

    version: str
    digest: str
    base_model: str
    adapters: int
    router: str | None
    location: str | None = None
    """URI or folder."""
    published: bool | None = None

    def __str__(self) -> str:
        if self.location is None:
            return f"bank {self.version}"
        if self.published:
            return f"bank {self.location} version {self.version}"
        return f"bank folder {self.location}, unpublished (version {self.version})"


class SuiteInfo(Record):
    """The suite it was evaluated on. Results with the same digest can be compared row by row."""

    name: str
    digest: str
    rows: int
    seed: int
    metrics: tuple[str, ...] = ()
    """The metrics that are scores, one or more; empty in results of older versions."""


class RowScore(Record):
    """One row's score, from 0 to 1, under each arm that applies to it."""

    task: str
    scores: dict[str, float]


class Example(Record):
    """One row with the answers of every arm that applies to it; the dictionaries are by arm."""

    task: str
    input: str
    expected: str
    outcome: str
    """How the judged arm did beside the right adapter and the plain model."""
    alike: int
    """Number of rows of the suite with this outcome."""
    answers: dict[str, str]
    scores: dict[str, float]
    """From 0 to 1."""
    adapters: dict[str, list[str]]
    """The adapters of the mix; for an arm by sentence, of the first one."""


class Results(Record):
    """One evaluation."""

    format: Literal[1] = 1
    created: AwareDatetime
    suite: SuiteInfo
    bank: BankInfo
    setup: str
    """The base model's name and digest, and the precision it ran in."""
    seconds: float
    """Duration of the run that completed the evaluation; a resumed run did only part of the work."""
    arms: list[ArmScore] = Field(min_length=1)
    router: RouterScore | None
    composites: list[CompositeScore]
    rows: dict[str, RowScore] = Field(default_factory=dict)
    """By row id; empty where results were published without them: then nothing can be compared row by row."""
    examples: list[Example] = Field(default_factory=list)
    conditions: str = ""
    """The device, and how many requests it served at a time: what the times depend on."""

    def arm(self, name: str) -> ArmScore:
        """The scores of the arm `name`. Raises InvalidRequest if it was not run."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise InvalidRequest(
            f"arm {name!r} is not in the results of bank {self.bank.version}; they have: "
            f"{', '.join(arm.name for arm in self.arms)}"
        )

    def distinct(self) -> dict[str, list[str]]:
        """Distinct arms in order: the first arm of each set of equal choices, mapped to the other arms of the set."""
        first: dict[str, str] = {}
        groups: dict[str, list[str]] = {}
        for arm in self.arms:
            name = first.setdefault(arm.choices, arm.name)
            if name == arm.name:
                groups[name] = []
            else:
                groups[name].append(arm.name)
        return groups

    def by_task(self, arm: str) -> dict[str, dict[str, float]]:
        """Scores of `arm`: task to row id to score. Raises InvalidRequest if it was not run."""
        self.arm(arm)
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        for row_id, row in self.rows.items():
            if arm in row.scores:
                scores[row.task][row_id] = row.scores[arm]
        return dict(scores)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher one side scores than the other on the rows they share, in points."""

    overall: Interval
    tasks: dict[str, Interval]

    def worse(self, tolerance: float) -> list[str]:
        """Tasks that lost more than `tolerance` points and significantly so."""
        return [task for task, interval in self.tasks.items() if interval.mean < -tolerance and interval.high < 0]

    @property
    def better(self) -> list[str]:
        """Tasks that gained significantly."""
        return [task for task, interval in self.tasks.items() if interval.low > 0]


def difference(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> Difference:
    """Difference of two sides, each given as task to row id to score.

    The level of single tasks' intervals is raised (Bonferroni): otherwise, of twenty tasks without a difference, one
    would seem to have one. Raises InvalidRequest if the sides share no row.
    """
    differences = {
        task: [score - theirs[task][row_id] for row_id, score in rows.items() if row_id in theirs[task]]
        for task, rows in ours.items()
        if task in theirs
    }
    differences = {task: values for task, values in differences.items() if values}
    if not differences:
        raise InvalidRequest("the two results have no row in common; run both on the same suite")
    level = 1 - (1 - LEVEL) / len(differences)
    return Difference(
        Interval.of(estimate_over_tasks(differences)),
        {task: Interval.of(estimate(values, level=level)) for task, values in differences.items()},
    )


def compare_arms(results: Results, arm: str, baseline: str) -> Difference:
    """How much higher `arm` scores than `baseline`. Raises InvalidRequest if either was not run."""
    return difference(results.by_task(arm), results.by_task(baseline))


def compare_banks(new: Results, old: Results, arm: str) -> Difference:
    """How much higher `new` scores than `old` under one arm. Raises InvalidRequest if the suites differ."""
    if new.suite.digest != old.suite.digest:
        raise InvalidRequest(
            f"bank {new.bank.version} was evaluated on suite {new.suite.name} {new.suite.digest}, bank "
            f"{old.bank.version} on {old.suite.name} {old.suite.digest}; run both on the same suite"
        )
    return difference(new.by_task(arm), old.by_task(arm))


def read(path: Path) -> Results:
    """Read results from a file. Raises InvalidRequest if it is unreadable or holds something else."""
    try:
        with disk_errors(f"{path}: cannot be read"):
            return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidRequest(f"{path}: not the results of an evaluation ({first_problem(error)})") from None


def save(store: AdapterStore, results: Results) -> str:
    """Store results beside their bank and return the key. Raises StoreUnavailable, or Conflict if results of the same
    microsecond exist."""
    key = f"{_prefix(results.bank.version)}{_name(results)}-{results.created:{_TIME}}.json"
    store.put(key, results.model_dump_json(indent=1).encode() + b"\n", if_none_match=True)
    return key


def latest(store: AdapterStore, version: str, *, suite: str | None = None, arms: Sequence[str] = ()) -> Results:
    """Load the newest results of a bank version that have all of `arms`; `suite` is a name, or a name and digest joined
    by '-'. Raises NotFound if there are none, BankError if they are damaged."""
    prefix = _prefix(validate_name(version))
    for info in sorted(store.list(prefix), key=lambda info: _time(info.key), reverse=True):
        name = info.key.removeprefix(prefix)
        if suite is None or name.startswith(f"{suite}-"):
            results = load(store, info.key)
            if set(arms) <= {arm.name for arm in results.arms}:
                return results
    on_suite = f" on suite {suite}" if suite else ""
    raise NotFound(
        f"{store.uri} has no results of bank {version}{on_suite}{' with arm ' + ', '.join(arms) if arms else ''}; "
        "run dlp eval --suite SUITE --bank URI#VERSION"
    )


def stored(store: AdapterStore) -> list[str]:
    """The keys of all results, the newest first. Raises StoreUnavailable."""
    return sorted((info.key for info in store.list(_FOLDER)), key=_time, reverse=True)


def load(store: AdapterStore, key: str) -> Results:
    """Results by their key. Raises NotFound, or BankError if they are damaged."""
    try:
        return Results.model_validate_json(store.get(key).data)
    except ValidationError as error:
        raise BankError(f"{key!r} in {store.uri} is damaged ({first_problem(error)}); delete it") from None


def _prefix(version: str) -> str:
    return f"{_FOLDER}{version}/"


def _name(results: Results) -> str:
    return f"{results.suite.name}-{results.suite.digest}"


def _time(key: str) -> datetime:
    try:
        return datetime.strptime(key.rpartition("-")[2], f"{_TIME}.json")
    except ValueError:
        return datetime.min
