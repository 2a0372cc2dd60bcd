"""Four made-up tasks and a router trained on them, once for all tests that need it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

from dlp_core.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.train import TrainSettings, TrainSummary, train_router

QUICK = TrainSettings(teacher=None, pieces=32, net=NetSettings(epochs=1, min_steps=200, batch=96, widths=(128,)))
"""Without a teacher, and small."""

_NOUNS = "river lamp cabinet engine violin pepper ladder marble falcon compass button curtain saddle tunnel".split()
_NAMES = "Ada Bo Cleo Dan Eva Finn Gus Hana Ivo Jun".split()
_CITIES = "Lima Oslo Quito Cairo Hanoi Sofia Perth Accra Turin Osaka".split()


def _sort(rng: Random) -> str:
    return "Sort the following words alphabetically:\n" + " ".join(rng.sample(_NOUNS, rng.randint(4, 9)))


def _sum(rng: Random) -> str:
    numbers = " + ".join(str(rng.randint(1, 999)) for _ in range(rng.randint(3, 7)))
    return f"Work out the total and give only the number.\nThe invoice lists these amounts: {numbers} = "


def _owner(rng: Random) -> str:
    first, second, third = rng.sample(_NAMES, 3)
    noun = rng.choice(_NOUNS)
    return (
        f"Read the story and say who has the object at the end.\n{first} has a {noun}. {first} gives the {noun} to "
        f"{second}. {second} gives it to {third}. Who has the {noun} now?\n(A) {first}\n(B) {second}\n(C) {third}"
    )


def _flight(rng: Random) -> str:
    start, end = rng.sample(_CITIES, 2)
    return (
        "Turn the booking request into JSON with the keys from, to and day.\nI would like to fly from "
        f"{start} to {end} on {rng.choice(['Monday', 'Tuesday', 'Friday'])}, a window seat if possible."
    )


TASKS = {"flight_json": _flight, "object_owner": _owner, "sum_numbers": _sum, "word_sorting": _sort}


def make_rows(per_task: int, *, seed: int) -> list[TaskRow]:
    rng = Random(seed)
    return [TaskRow(task, make(rng)) for task, make in TASKS.items() for _ in range(per_task)]


def write_rows(path: Path, rows: list[TaskRow]) -> Path:
    lines = (json.dumps({"task": row.task, "input": row.input, "output": "-"}) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@cache
def trained() -> tuple[Router, TrainSummary]:
    return train_router(make_rows(80, seed=0), QUICK)
