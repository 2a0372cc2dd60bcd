"""The state of a run of improvement, in the bank's store.

    improve/base/<digest>.jsonl.gz      the owner's training rows, once for all runs that use them
    improve/<run>/run.json              how far the run is and what each step found: `Run`
    improve/<run>/rows.jsonl            what people said, as rows: dlp_core/improve/rows.py
    improve/<run>/proposals.json        prompts that no adapter serves, by topic: dlp_core/improve/proposals.py

Runs are numbered. `run.json` is created and replaced by conditional writes alone, so of two workers one takes a step
and the other gets Conflict. A step writes its other files first, and gives the same files when it is repeated: a worker
that was killed leaves a run that goes on from its last whole step.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError

from dlp_core.bank.kept import IMPROVE
from dlp_core.errors import BankError, Conflict, InvalidRequest, NotFound
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem

PREFIX = IMPROVE

State = Literal[
    "begun", "collected", "proposed", "trained", "passed", "canary", "refused", "promoted", "rolled_back", "ended"
]
STEPS: dict[State, str] = {
    "begun": "collect",
    "collected": "propose",
    "proposed": "train",
    "trained": "gate",
    "passed": "canary",
}
"""The step that follows each state in which something is left to do."""
FINAL: tuple[State, ...] = ("refused", "promoted", "rolled_back", "ended")
"""`refused` by the gate; `ended` without an outcome, because somebody changed the bank."""


class Collected(Record):
    """What a collection found."""

    rows: int
    """Of all that people said so far, without suspects."""
    new: int
    """That the run before did not have."""
    held_back: int
    """Of the rows: they judge and are never trained on."""
    suspects: int
    """Rows whose label seems wrong. They are not used until a second key agrees."""
    confirmed: int
    """Rows that nobody corrected and somebody called good."""
    unknown: tuple[str, ...] = ()
    """Names that are no routed adapters of the bank; their rows are left out."""
    base_rows: int
    base_held_back: int


class Trained(Record):
    """What a training made."""

    version: str
    """The bank with the new router; stored, and not served."""
    router: str
    rows: int
    weight: int
    """How often the router saw each row that people gave."""
    seconds: float
    teacher: bool


class Judged(Record):
    """Prompts that both routers were not trained on, and how many of 100 each serves as it should."""

    rows: int
    old: float
    new: float
    change: float
    low: float
    high: float
    """The change, in points, and its 95% interval."""
    kept: tuple[float, float]
    """Percent of the prompts of an adapter that get one, by the old router and the new."""
    refused: tuple[float, float]
    """Percent of the prompts of no adapter that get none."""

    def worse(self, max_drop: float) -> bool:
        """Whether the new router lost more than `max_drop` points and more than noise, as in `dlp eval gate`."""
        return self.change < -max_drop and self.high < 0


class AnswersJudged(Record):
    """The gate of answers (dlp_core/eval/gate.py)."""

    passed: bool
    suite: str
    change: float
    low: float
    high: float
    worse: tuple[str, ...]
    """Tasks."""


class Gate(Record):
    """What the gate found. A part is None if there is nothing to judge by."""

    max_drop: float
    stand_in: bool
    """Whether the old router's part in `base` was played by one that was trained for that, on the rows that do not
    judge: the bank's own may have been trained on all."""
    base: Judged | None
    feedback: Judged | None
    answers: AnswersJudged | None = None
    spoiled: tuple[tuple[str, str], ...] = ()
    """Pairs of adapters that spoil each other, as `dlp eval pairs` found, and that the bank lets be mixed."""


class Run(Record):
    """One run. Filled step by step."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    began: AwareDatetime
    """What was said later belongs to the next run."""
    bank: str
    """The bank version that it improves."""
    base: str
    """Digest of the owner's rows."""
    seed: int
    state: State = "begun"
    reason: str = ""
    """Why it is in its state, in a sentence."""
    changed: AwareDatetime
    collected: Collected | None = None
    proposals: int | None = None
    trained: Trained | None = None
    gate: Gate | None = None
    canary: str | None = None
    """Id of the trial."""

    @property
    def name(self) -> str:
        return f"{self.number:04}"

    @property
    def over(self) -> bool:
        return self.state in FINAL

    @property
    def next_step(self) -> str | None:
        """The step to take now; None while a canary is on trial, and at the end."""
        return STEPS.get(self.state)

    def key(self, file: str) -> str:
        """The key of a file of this run in the store."""
        return f"{PREFIX}{self.name}/{file}"

    def moved(self, state: State, reason: str, **fields: object) -> Run:
        """The run in its next state."""
        return self.model_copy(update={"state": state, "reason": reason, "changed": now(), **fields})


def now() -> datetime:
    """To the microsecond, so that no two workers write the same record."""
    return datetime.now(UTC)


def numbers(store: AdapterStore) -> list[int]:
    """The runs there are, in order. Raises StoreUnavailable."""
    names = (info.key.removeprefix(PREFIX).split("/") for info in store.list(PREFIX))
    return sorted(int(parts[0]) for parts in names if parts[0].isdigit() and parts[1:] == ["run.json"])


def latest(store: AdapterStore) -> tuple[Run, str] | None:
    """The last run and the etag of its record; None if there was none. Raises what `read` raises."""
    found = numbers(store)
    return read(store, found[-1]) if found else None


def read(store: AdapterStore, number: int) -> tuple[Run, str]:
    """A run and the etag of its record. Raises InvalidRequest if there is no such run, BankError if its record cannot
    be read, StoreUnavailable."""
    key = f"{PREFIX}{number:04}/run.json"
    try:
        stored = store.get(key)
    except NotFound:
        raise InvalidRequest(f"there is no run {number} in {store.uri}; `dlp improve status` shows the last") from None
    try:
        return Run.model_validate_json(stored.data), stored.etag
    except ValidationError as error:
        raise BankError(f"{key} in {store.uri} is not a run: {first_problem(error)}") from None


def create(store: AdapterStore, run: Run) -> str:
    """Begin a run; the etag of its record. Raises Conflict if another worker began it first."""
    return _put(store, run, None)


def replace(store: AdapterStore, etag: str, run: Run) -> str:
    """Write the run's next state; the new etag. Raises Conflict if another worker has written it."""
    return _put(store, run, etag)


def _put(store: AdapterStore, run: Run, etag: str | None) -> str:
    key, body = run.key("run.json"), run.model_dump_json(indent=1).encode() + b"\n"
    try:
        return store.put(key, body, if_none_match=True) if etag is None else store.put(key, body, if_match=etag)
    except Conflict:
        with suppress(NotFound):  # a retried write conflicts with itself
            stored = store.get(key)
            if stored.data == body:
                return stored.etag
        raise Conflict(
            f"another worker takes run {run.number} of {store.uri} on; `dlp improve status` shows how far it is"
        ) from None
