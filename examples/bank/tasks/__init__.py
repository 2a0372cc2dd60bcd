"""The demo tasks: pure, seeded generators of prompts and answers. No data of anybody else is in them.

A task is a module with `row(rng, split) -> (input, output)`; this table is the one place that lists them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

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

TASKS: Mapping[str, Callable[[random.Random, Split], tuple[str, str]]] = {
    "cron": cron.row,
    "iso_date": iso_date.row,
    "json_extract": json_extract.row,
    "sentiment": sentiment.row,
    "shell": shell.row,
    "text_to_sql": text_to_sql.row,
    "ticket_triage": ticket_triage.row,
    "tool_call": tool_call.row,
}


def rows(task: str, split: Split, count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows of a task with inputs that are all different. Same arguments, same rows."""
    rng = random.Random(f"{task}/{split}/{seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        text, answer = TASKS[task](rng, split)
        found.setdefault(text, answer)
    return [{"task": task, "input": text, "output": answer} for text, answer in found.items()]


def background_rows(split: Split, count: int, *, seed: int = 0) -> list[dict[str, str | None]]:
    """`count` prompts that fit no adapter, as rows whose task is null."""
    rng = random.Random(f"background/{split}/{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(background.row(rng, split))
    return [{"task": None, "input": text, "output": ""} for text in found]
