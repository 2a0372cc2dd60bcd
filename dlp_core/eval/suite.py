"""A suite: the rows and metrics a bank is evaluated with. A YAML file beside its data.

    name: bigbench26
    data: [test.jsonl.gz]            # rows of dlp_core.text.rows, each with its task and type
    rows: 50                         # of each task, drawn with the seed; all when left out
    seed: 0
    types:                           # the first metric of a type is the score
      mcq: {metrics: [accuracy, likelihood], max_tokens: 24}
      qa: {metrics: [rougeL, bleu, exact_match], max_tokens: 64}
    max_adapters: 3                  # in a mix
    composite: {parts: [2, 3, 4, 5], prompts: 25, max_chars: 500}     # several tasks in one prompt

A row's task is the name of the adapter trained for it; rows whose task is null fit no adapter and are skipped. `type`
may be left out if the suite has only one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlp_core.errors import InvalidRequest
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.rows import EvalRow
from dlp_core.store.disk import disk_errors
from dlp_core.store.documents import parse_yaml, read_regular
from dlp_core.store.records import first_problem
from dlp_core.text.rows import Row, read_rows


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TypeSettings(_Settings):
    """How rows of one type are answered and scored."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    """The first one is the score of a row."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        known = (*METRICS, LIKELIHOOD)
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"there is no metric {metric!r}; use {', '.join(known)}")
        return self


COMPARED = TypeSettings(metrics=("exact_match", "f1"))
"""Of rows that no suite describes."""


class Composite(_Settings):
    """Prompts that ask questions of several tasks at once."""

    parts: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (2, 3, 4, 5)
    """Numbers of questions per prompt: one group of prompts for each."""
    prompts: Annotated[int, Field(ge=1)] = 25
    """Number of prompts in each group."""
    max_chars: Annotated[int, Field(ge=1)] = 500
    """Maximum length of a question in characters."""


class SuiteSettings(_Settings):
    """The contents of the YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data: Annotated[tuple[str, ...], Field(min_length=1)]
    types: Annotated[dict[str, TypeSettings], Field(min_length=1)]
    rows: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0
    max_adapters: Annotated[int, Field(ge=1)] = 3
    composite: Composite | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """Settings and the rows drawn: grouped by task, in the order of the data within a task."""

    settings: SuiteSettings
    rows: tuple[EvalRow, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def digest(self) -> str:
        """Digest of everything that decides what is asked and how it is scored: results with the same digest are
        comparable."""
        content = json.dumps([self.settings.model_dump(mode="json", exclude={"data"}), [row.id for row in self.rows]])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def score_metric(self, row: EvalRow) -> str:
        """The name of the metric that is the row's score."""
        return self.settings.types[row.type].metrics[0]

    def scored_by(self, metric: str | None) -> Suite:
        """The suite with this metric as the score of the rows that have it; None changes nothing."""
        types = {
            name: kind.model_copy(update={"metrics": tuple(sorted(kind.metrics, key=lambda each: each != metric))})
            for name, kind in self.settings.types.items()
        }
        return replace(self, settings=self.settings.model_copy(update={"types": types}))


def load_suite(path: Path, *, data: Path | None = None, rows: int | None = None) -> Suite:
    """Read a suite and draw its rows. `data` is the folder of its data files, by default the suite's own; `rows`
    overrides the suite's setting and also limits the composite prompts in each group.

    Raises InvalidRequest, naming file and line, if the suite or a row is invalid.
    """
    try:
        with disk_errors(f"{path}: cannot be read"):
            raw = parse_yaml(read_regular(path))
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{path}: a suite has name, data and types; see docs/evaluation.md")
    try:
        settings = SuiteSettings.model_validate(raw | ({} if rows is None else {"rows": rows}))
    except ValidationError as error:
        raise InvalidRequest(f"{path}: {first_problem(error)}") from None
    if rows is not None and settings.composite is not None:
        composite = settings.composite.model_copy(update={"prompts": min(settings.composite.prompts, rows)})
        settings = settings.model_copy(update={"composite": composite})
    return _suite(settings, path, path.parent if data is None else data)


def suite_of_rows(path: Path, *, rows: int | None = None) -> Suite:
    """A suite of a file of rows alone: their answers are compared with what is expected, word for word. `rows` is drawn
    of each task; None: all.

    Raises InvalidRequest, naming file and line, if a row is invalid.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.partition(".")[0]).strip("-._")[:64] or "rows"
    types = {str(row.record.get("type") or "text"): COMPARED for row in read_rows(path)}
    return _suite(SuiteSettings(name=name, data=(path.name,), types=types, rows=rows), path, path.parent)


def _suite(settings: SuiteSettings, path: Path, folder: Path) -> Suite:
    unique: dict[str, EvalRow] = {}
    for name in settings.data:
        for read in read_rows(folder / name):
            if (row := _row(read, settings)) is not None:
                unique.setdefault(row.id, row)  # a repeated question counts once
    if not unique:
        raise InvalidRequest(f"{path}: no row of its data has a task")
    return Suite(settings, tuple(_draw(list(unique.values()), settings)))


def draw_composites(suite: Suite) -> dict[int, list[tuple[EvalRow, ...]]]:
    """Draw the composite prompts with the suite's seed, by number of parts; each part is of another task.

    Raises InvalidRequest if too few tasks have questions that are short enough.
    """
    settings = suite.settings.composite
    if settings is None:
        return {}
    short_rows: dict[str, list[EvalRow]] = defaultdict(list)
    for row in suite.rows:
        if len(row.input) <= settings.max_chars and not row.before:
            short_rows[row.task].append(row)
    if len(short_rows) < max(settings.parts):
        raise InvalidRequest(
            f"suite {suite.settings.name!r}: {len(short_rows)} tasks have questions of at most {settings.max_chars} "
            f"characters, but prompts of {max(settings.parts)} parts need as many tasks; raise composite.max_chars"
        )
    drawn = {}
    for parts in settings.parts:
        random = Random(f"{suite.settings.seed} {parts}")
        drawn[parts] = [
            tuple(random.choice(short_rows[task]) for task in random.sample(sorted(short_rows), parts))
            for _ in range(settings.prompts)
        ]
    return drawn


def _draw(rows: Sequence[EvalRow], settings: SuiteSettings) -> Iterator[EvalRow]:
    by_task: dict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    for task in sorted(by_task):
        task_rows = by_task[task]
        if settings.rows is not None and settings.rows < len(task_rows):
            kept = set(Random(f"{settings.seed} {task}").sample(range(len(task_rows)), settings.rows))
            task_rows = [row for index, row in enumerate(task_rows) if index in kept]
        yield from task_rows


def _row(row: Row, settings: SuiteSettings) -> EvalRow | None:
    """None for a row that fits no adapter."""
    if row.has_task and row.task is None:
        return None
    if row.task is None:
        raise InvalidRequest(f'{row.where}: "task" is missing; add the name of its adapter, or null for none')
    kind = row.record.get("type") or (next(iter(settings.types)) if len(settings.types) == 1 else None)
    if kind not in settings.types:
        raise InvalidRequest(
            f"{row.where}: type {kind!r} is not a type of the suite: {', '.join(sorted(settings.types))}"
        )
    prompt, output = row.answered()
    before, question = ((), prompt) if isinstance(prompt, str) else (prompt[:-1], prompt[-1].content)
    if not isinstance(prompt, str) and prompt[-1].role != "user":
        raise InvalidRequest(f"{row.where}: the answer must follow a user's turn, not that of {prompt[-1].role!r}")
    content: list[object] = [row.task, kind, question, output]
    if before:
        content.append([asdict(turn) for turn in before])
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    made = EvalRow(digest, row.task, str(kind), question, output, before)
    if LIKELIHOOD in settings.types[made.type].metrics and len(made.options) < 2:
        raise InvalidRequest(
            f"{row.where}: type {made.type!r} is scored by likelihood, but the prompt lists no (A), (B) ..."
        )
    return made
