"""The router as it grows: adapters added with few examples or none, and a thousand adapters.

    .venv/bin/python -m benchmarks.router TRAIN.jsonl.gz TEST.jsonl.gz [--descriptions TASKS.json] [--quick]

    growth   a tenth of the tasks at a time is left out of training; each of them is then added with 16 of its rows,
    with
             4, and with a description alone, if TASKS.json has one: is it routed correctly, and what do the others
             lose?
    scale    1,000 adapters: sub-tasks of the tasks (clusters of their rows in the hidden layer) and synthetic tasks;
             950 are trained, 50 added one by one; latency of one prompt on one thread, next to the tasks' own router

`dlp router eval --train-data` measures quality, benchmarks/router_latency.py speed without any rows. Prints one JSON
object.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported: latencies are for one thread

import numpy as np
import typer

from benchmarks.measure.harness import environment, run
from dlp_core.router import Router
from dlp_core.router.growth import add_adapter
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training.train import train_router

EXAMPLES = (16, 4)
MEANS = ("right", "kept", "others_lose", "seconds")
GROUPS = 10
ADAPTERS = 1000
ADDED = 50
SUBTASKS = 20  # per task
SYNTHETIC_ROWS = 40  # per synthetic task

VERBS = "Describe Compare Estimate Outline Criticise Defend Rename Price Schedule Illustrate Simulate Budget".split()
NOUNS = (
    "bridge orchard harbour cathedral turbine vineyard glacier tramway archive lighthouse foundry aquarium quarry "
    "theatre observatory windmill monastery reservoir stadium greenhouse brewery canal fortress ferry museum mill "
    "dockyard planetarium arsenal tannery smithy lagoon meadow viaduct dam granary abbey cottage pavilion tower"
).split()
DETAILS = (
    "old new small famous hidden noisy wooden modern damaged crowded northern painted royal empty steep quiet".split()
)


def growth(
    train: list[TaskRow], test: list[TaskRow], groups: Sequence[Sequence[str]], descriptions: dict[str, str]
) -> dict[str, Any]:
    """Means over all tasks, by what the task is added with."""
    grown = [one for group in groups for one in _grow(group, train, test, descriptions)]
    result: dict[str, Any] = {"tasks": len({one["task"] for one in grown})}
    for known_by in dict.fromkeys(one["known_by"] for one in grown):
        own = [one for one in grown if one["known_by"] == known_by]
        result[known_by] = {
            **{name: round(float(np.mean([one[name] for one in own])), 4) for name in MEANS},
            "right_least": min(one["right"] for one in own),
            "others_lose_most": max(one["others_lose"] for one in own),
        }
    return result | {"each": grown}


def _grow(
    group: Sequence[str], train: list[TaskRow], test: list[TaskRow], descriptions: dict[str, str]
) -> list[dict[str, Any]]:
    """Train without a group of tasks, then add each of them alone, in each way."""
    router, _ = train_router([row for row in train if row.task not in group])
    others = [row for row in test if row.task in router.labels]
    accuracy_before = _accuracy(router, others)
    runs = []
    for task in group:
        own = [row.input for row in train if row.task == task]
        ways = {f"{count} examples": (Random(0).sample(own, count), None) for count in EXAMPLES}
        if task in descriptions:
            ways["a description"] = ([], descriptions[task])
        for known_by, (examples, description) in ways.items():
            started = time.perf_counter()
            grown, _ = add_adapter(router, task, examples, description=description)
            seconds = time.perf_counter() - started
            routings = grown.route([row.input for row in test if row.task == task])
            runs.append(
                {
                    "task": task,
                    "known_by": known_by,
                    "right": round(float(np.mean([routing.best == task for routing in routings])), 4),
                    "kept": round(float(np.mean([routing.fits for routing in routings])), 4),
                    "others_lose": round(accuracy_before - _accuracy(grown, others), 4),
                    "seconds": round(seconds, 2),
                }
            )
    return runs


def _accuracy(router: Router, rows: list[TaskRow]) -> float:
    routings = router.route([row.input for row in rows])
    return float(np.mean([routing.best == row.task for routing, row in zip(routings, rows, strict=True)]))


def scale(train: list[TaskRow], test: list[TaskRow]) -> dict[str, Any]:
    small, _ = train_router(train)
    rows = [*_subtasks(small, train), *_synthetic()]
    by_task: dict[str, list[TaskRow]] = {}
    for row in rows:
        by_task.setdefault(str(row.task), []).append(row)
    names = sorted(name for name, members in by_task.items() if len(members) >= 2 * EXAMPLES[0])
    rng = Random(0)
    rng.shuffle(names)
    names = names[:ADAPTERS]
    added = names[:ADDED]
    held_out = [by_task[name].pop() for name in names for _ in range(2)]
    started = time.perf_counter()
    router, _ = train_router([row for name in names[ADDED:] for row in by_task[name]])
    training_s = time.perf_counter() - started
    known = [row for row in held_out if row.task in set(names[ADDED:])]
    accuracy_before = _accuracy(router, known)
    seconds = []
    for name in added:
        started = time.perf_counter()
        router, _ = add_adapter(router, name, [row.input for row in by_task[name][: EXAMPLES[0]]])
        seconds.append(time.perf_counter() - started)
    texts = [row.input for row in test]
    latencies: dict[str, list[float]] = {"tasks": [], "thousand": []}
    for side in ("tasks", "thousand", "thousand", "tasks") * 2:
        latencies[side] += _latencies(small if side == "tasks" else router, texts)
    return {
        "adapters": len(router.labels),
        "trained_s": round(training_s, 1),
        "parameters": router.parameters,
        "right": round(accuracy_before, 4),
        "right_after_adding": round(_accuracy(router, known), 4),
        "added_right": round(_accuracy(router, [row for row in held_out if row.task in set(added)]), 4),
        "add_s_most": round(max(seconds), 2),
        **{
            f"{side}_{name}_ms": round(float(np.quantile(samples, share)) * 1e3, 4)
            for side, samples in latencies.items()
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
    }


def _subtasks(router: Router, rows: list[TaskRow]) -> list[TaskRow]:
    """Rows of each task, relabelled by the cluster they fall in (k-means in the hidden layer)."""
    relabelled = []
    rng = np.random.default_rng(0)
    for task in router.labels:
        members = [row for row in rows if row.task == task]
        hidden = np.concatenate(
            [
                router.network.hidden(router.encoder.encode([row.input for row in members[n : n + 64]]))
                for n in range(0, len(members), 64)
            ]
        )
        centres = hidden[rng.choice(len(hidden), min(SUBTASKS, len(hidden) // (2 * EXAMPLES[0])), replace=False)]
        for _ in range(12):
            nearest = np.square(hidden[:, None] - centres).sum(axis=2).argmin(axis=1)
            centres = np.stack(
                [hidden[nearest == n].mean(axis=0) if (nearest == n).any() else c for n, c in enumerate(centres)]
            )
        relabelled += [TaskRow(f"{task}-{cluster}", row.input) for row, cluster in zip(members, nearest, strict=True)]
    return relabelled


def _synthetic() -> list[TaskRow]:
    """A task for every pair of verb and noun."""
    rng = Random(1)
    pairs = [(verb, noun) for noun in NOUNS for verb in VERBS] + [
        (f"Un{verb.lower()}", noun) for noun in NOUNS for verb in VERBS
    ]

    def text(verb: str, noun: str) -> str:
        about = f"It is {rng.choice(DETAILS)} and {rng.choice(DETAILS)}, built in {rng.randint(1200, 2020)}"
        near = f"{rng.randint(2, 90)} metres high, and near a {rng.choice(DETAILS)} {rng.choice(NOUNS)}."
        return f"{verb} the {noun} below.\n{about}, {near}"

    return [TaskRow(f"{verb.lower()}-{noun}", text(verb, noun)) for verb, noun in pairs for _ in range(SYNTHETIC_ROWS)]


def _latencies(router: Router, texts: Sequence[str]) -> list[float]:
    """Seconds of each text, one at a time, after a warm-up."""
    router.route(texts[:64])
    seconds = []
    for text in texts:
        started = time.perf_counter()
        router.route([text])
        seconds.append(time.perf_counter() - started)
    return seconds


def main(
    train: Annotated[Path, typer.Argument(help="Training rows.")],
    test: Annotated[Path, typer.Argument(help="Test rows.")],
    descriptions: Annotated[Path | None, typer.Option(help="JSON object: task to what it is for.")] = None,
    quick: Annotated[bool, typer.Option(help="One group of tasks for growth, no thousand adapters.")] = False,
) -> None:
    rows, held_out = read_task_rows([train]), read_task_rows([test])
    tasks = sorted({row.task for row in rows if row.task is not None})
    Random(0).shuffle(tasks)
    groups = [tasks[start::GROUPS] for start in range(GROUPS)]
    about = {} if descriptions is None else json.loads(descriptions.read_text(encoding="utf-8"))
    result = {
        **environment(),
        **({} if quick else {"scale": scale(rows, held_out)}),
        "growth": growth(rows, held_out, groups[:1] if quick else groups, about),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
