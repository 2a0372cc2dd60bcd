"""A suite: which rows a bank is judged on, by which metrics. A YAML file beside its data.

    name: bigbench26
    data: [test.jsonl.gz]            # JSON lines {"task", "type", "input", "output"}, plain or .gz
    rows: 50                         # of each task, drawn with the seed; all when left out
    seed: 0
    types:                           # the first metric of a type is the one that counts
      mcq: {metrics: [accuracy, likelihood], max_tokens: 24}
      qa: {metrics: [rougeL, bleu, exact_match], max_tokens: 64}
    max_adapters: 3                  # of one mix
    composite: {parts: [2, 3, 4, 5], prompts: 25, max_chars: 500}     # several tasks in one prompt

A row's task is the name of the adapter that was made for it; rows whose task is null fit none and are left out. `type`
may be left out where the suite has one type only.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlp_core.adapter.names import validate_name
from dlp_core.errors import InvalidRequest
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.rows import EvalRow
from dlp_core.store.jsonl import read_objects
from dlp_core.store.records import first_problem


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TypeSettings(_Settings):
    """How answers of one type are made and judged."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    """The first one is the score of a row."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64

    @model_validator(mode="after")
    def _knows_its_metrics(self) -> Self:
        known = (*METRICS, LIKELIHOOD)
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"there is no metric {metric!r}; there are: {', '.join(known)}")
        return self


class Composite(_Settings):
    """Prompts that ask several tasks' questions at once."""

    parts: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (2, 3, 4, 5)
    """How many questions: one group of prompts for each number."""
    prompts: Annotated[int, Field(ge=1)] = 25
    """Of each group."""
    max_chars: Annotated[int, Field(ge=1)] = 500
    """Longest question that goes into one."""


class SuiteSettings(_Settings):
    """The YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data: Annotated[tuple[str, ...], Field(min_length=1)]
    types: Annotated[dict[str, TypeSettings], Field(min_length=1)]
    rows: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0
    max_adapters: Annotated[int, Field(ge=1)] = 3
    composite: Composite | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """Settings and the rows that were drawn, by task and in the order of the data within one."""

    settings: SuiteSettings
    rows: tuple[EvalRow, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def digest(self) -> str:
        """Of everything that decides what is asked and how it is judged: results of one digest can be compared."""
        content = json.dumps([self.settings.model_dump(mode="json", exclude={"data"}), [row.id for row in self.rows]])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def score_of(self, row: EvalRow) -> str:
        """The metric that is the row's score."""
        return self.settings.types[row.type].metrics[0]


def load_suite(path: Path, *, data: Path | None = None, rows: int | None = None) -> Suite:
    """Reads a suite and draws its rows. `data` is the folder its files lie in, by default the suite's own; `rows` takes
    the place of the suite's, and there are no more composite prompts of a length than that.

    Raises InvalidRequest, naming file and line, for a suite or rows that cannot be used.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{path}: a suite has name, data and types; see docs/evaluation.md")
    try:
        settings = SuiteSettings.model_validate(raw | ({} if rows is None else {"rows": rows}))
    except ValidationError as error:
        raise InvalidRequest(f"{path}: {first_problem(error)}") from None
    if rows is not None and settings.composite is not None:
        fewer = settings.composite.model_copy(update={"prompts": min(settings.composite.prompts, rows)})
        settings = settings.model_copy(update={"composite": fewer})
    folder = path.parent if data is None else data
    found: dict[str, EvalRow] = {}
    for name in settings.data:
        for where, record in read_objects(folder / name):
            if (row := _row(record, where, settings)) is not None:
                found.setdefault(row.id, row)  # the same question twice is one question
    if not found:
        raise InvalidRequest(f"{path}: no row of its data has a task")
    return Suite(settings, tuple(_draw(list(found.values()), settings)))


def composites(suite: Suite) -> dict[int, list[tuple[EvalRow, ...]]]:
    """Prompts with several parts, by their number: each of a task of its own, all drawn with the suite's seed.

    Raises InvalidRequest if the suite has too few tasks with questions that are short enough.
    """
    wanted = suite.settings.composite
    if wanted is None:
        return {}
    short: dict[str, list[EvalRow]] = defaultdict(list)
    for row in suite.rows:
        if len(row.input) <= wanted.max_chars:
            short[row.task].append(row)
    if len(short) < max(wanted.parts):
        raise InvalidRequest(
            f"suite {suite.settings.name!r}: {len(short)} tasks have questions of at most {wanted.max_chars} "
            f"characters, composite prompts of {max(wanted.parts)} parts need as many; raise composite.max_chars"
        )
    drawn = {}
    for parts in wanted.parts:
        order = Random(f"{suite.settings.seed} {parts}")
        drawn[parts] = [
            tuple(order.choice(short[task]) for task in order.sample(sorted(short), parts))
            for _ in range(wanted.prompts)
        ]
    return drawn


def _draw(rows: Sequence[EvalRow], settings: SuiteSettings) -> Iterator[EvalRow]:
    by_task: dict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    for task in sorted(by_task):
        own = by_task[task]
        if settings.rows is not None and settings.rows < len(own):
            chosen = set(Random(f"{settings.seed} {task}").sample(range(len(own)), settings.rows))
            own = [row for number, row in enumerate(own) if number in chosen]
        yield from own


def _row(record: dict[str, Any], where: str, settings: SuiteSettings) -> EvalRow | None:
    """None for a row that fits no adapter."""
    if "task" in record and record["task"] is None:
        return None
    if "type" not in record and len(settings.types) == 1:
        record["type"] = next(iter(settings.types))
    for field in ("task", "type", "input", "output"):
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise InvalidRequest(f"{where}: {field!r} must be a text that is not empty")
    if record["type"] not in settings.types:
        raise InvalidRequest(
            f"{where}: type {record['type']!r} is none of the suite's: {', '.join(sorted(settings.types))}"
        )
    try:
        validate_name(record["task"])
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from None
    content = [record[field] for field in ("task", "type", "input", "output")]
    row = EvalRow(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16], *content)
    if LIKELIHOOD in settings.types[row.type].metrics and len(row.options) < 2:
        raise InvalidRequest(f"{where}: type {row.type!r} is judged by likelihood, but the input lists no (A), (B) ...")
    return row
