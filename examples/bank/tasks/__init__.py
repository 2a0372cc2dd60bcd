"""The demo tasks: pure, seeded generators of prompts and answers, without any third-party data.

A task is a module with `row(rng, split) -> (text, answer)` and `frame(rng, text) -> prompt`; the table below is the
only place that lists them.
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
    """The generators of a task's rows."""

    row: Callable[[random.Random, Split], tuple[str, str]]
    """Generates an input text and its expected answer."""
    frame: Callable[[random.Random, str], str]
    """Wraps a text in a prompt."""


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
    """`count` rows of a task with distinct inputs. The same arguments give the same rows."""
    rng = random.Random(f"{task}/{split}/{seed}")
    answers: dict[str, str] = {}
    while len(answers) < count:
        text, answer = TASKS[task].row(rng, split)
        answers.setdefault(TASKS[task].frame(rng, text), answer)
    return [{"task": task, "input": text, "output": answer} for text, answer in answers.items()]


def background_rows(split: Split, count: int, *, seed: int = 0) -> list[dict[str, str | None]]:
    """`count` prompts that fit no adapter, as rows whose task is null."""
    rng = random.Random(f"background/{split}/{seed}")
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts.setdefault(background.row(rng, split))
    return [{"task": None, "input": text, "output": ""} for text in prompts]
