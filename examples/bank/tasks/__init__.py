"""The demo tasks: pure, seeded generators of prompts and answers. No data of anybody else is in them.

A task is a module with `row(rng, split) -> (text, answer)` and `frame(rng, text) -> prompt`; the table below is the
one place that lists them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from examples.bank.tasks import (
    background,
    cron,
    iso_date,
    json_extract,
    sentiment,
    shell,
    text_to_sql,
    ticket_triage,
    tool_call,
)
from examples.bank.tasks.pools import Split


class Task(NamedTuple):
    """How rows of a task are made."""

    row: Callable[[random.Random, Split], tuple[str, str]]
    """What is to be handled, and the answer wanted."""
    frame: Callable[[random.Random, str], str]
    """The prompt that asks for it."""


TASKS: Mapping[str, Task] = {
    "cron": Task(cron.row, cron.frame),
    "iso_date": Task(iso_date.row, iso_date.frame),
    "json_extract": Task(json_extract.row, json_extract.frame),
    "sentiment": Task(sentiment.row, sentiment.frame),
    "shell": Task(shell.row, shell.frame),
    "text_to_sql": Task(text_to_sql.row, text_to_sql.frame),
    "ticket_triage": Task(ticket_triage.row, ticket_triage.frame),
    "tool_call": Task(tool_call.row, tool_call.frame),
}


def rows(task: str, split: Split, count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows of a task with inputs that are all different. Same arguments, same rows."""
    rng = random.Random(f"{task}/{split}/{seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        text, answer = TASKS[task].row(rng, split)
        found.setdefault(TASKS[task].frame(rng, text), answer)
    return [{"task": task, "input": text, "output": answer} for text, answer in found.items()]


def background_rows(split: Split, count: int, *, seed: int = 0) -> list[dict[str, str | None]]:
    """`count` prompts that fit no adapter, as rows whose task is null."""
    rng = random.Random(f"background/{split}/{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(background.row(rng, split))
    return [{"task": None, "input": text, "output": ""} for text in found]
