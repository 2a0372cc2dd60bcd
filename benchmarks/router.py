"""The router at scale: adding an adapter with 16 examples, a thousand adapters, long prompts.

    .venv/bin/python -m benchmarks.router TRAIN.jsonl.gz TEST.jsonl.gz [--quick]

    growth   every task in turn is left out of training, then added with 16 of its rows: is it routed correctly, and how
             much accuracy do the others lose?
    scale    1,000 adapters: sub-tasks of the tasks (clusters of their rows in the hidden layer) and synthetic tasks;
             950 are trained, 50 added one by one; latency of one prompt on one thread, next to the tasks' own router
    long     prompts of 30,000 characters

`dlp router eval --train-data` measures quality, benchmarks/router_latency.py speed without any rows. Prints one JSON
object.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Annotated, Any

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported: latencies are for one thread

import numpy as np
import typer

from benchmarks.measure.harness import environment, run
from dlp_core.router import Router
from dlp_core.router.calibration import auroc
from dlp_core.router.features import featurise
from dlp_core.router.growth import MIN_EXAMPLES, add_adapter
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training.train import train_router

ADAPTERS = 1000
ADDED = 50
LONG = 30_000  # characters
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


def growth(train: list[TaskRow], test: list[TaskRow], workers: int, tasks: Sequence[str]) -> dict[str, Any]:
    with ProcessPoolExecutor(workers) as pool:
        runs = list(pool.map(_grow, tasks, [train] * len(tasks), [test] * len(tasks)))
    means = ("right", "in_the_mix", "kept", "others_lose", "unseen_auroc_before", "seconds")
    return {
        "examples": MIN_EXAMPLES,
        "runs": len(runs),
        **{f"{name}_mean": round(float(np.mean([run[name] for run in runs])), 4) for name in means},
        "right_least": min(run["right"] for run in runs),
        "others_lose_most": max(run["others_lose"] for run in runs),
        "tasks": runs,
    }


def _grow(task: str, train: list[TaskRow], test: list[TaskRow]) -> dict[str, Any]:
    router, _ = train_router([row for row in train if row.task != task])
    own_texts = [row.input for row in test if row.task == task]
    others = [row for row in test if row.task != task]
    examples = Random(0).sample([row.input for row in train if row.task == task], MIN_EXAMPLES)
    accuracy_before = _accuracy(router, others)
    unseen_auroc = auroc(_none(router, [row.input for row in others]), _none(router, own_texts))
    started = time.perf_counter()
    router, summary = add_adapter(router, task, examples)
    seconds = time.perf_counter() - started
    routings = router.route(own_texts)
    return {
        "task": task,
        "right": round(float(np.mean([routing.best == task for routing in routings])), 4),
        "in_the_mix": round(float(np.mean([task in routing.mix().names for routing in routings])), 4),
        "kept": round(float(np.mean([routing.fits for routing in routings])), 4),
        "others_lose": round(accuracy_before - _accuracy(router, others), 4),
        "unseen_auroc_before": round(unseen_auroc, 4),
        "promised": round(summary.right, 4),
        "seconds": round(seconds, 2),
    }


def _accuracy(router: Router, rows: list[TaskRow]) -> float:
    routings = router.route([row.input for row in rows])
    return float(np.mean([routing.best == row.task for routing, row in zip(routings, rows, strict=True)]))


def _none(router: Router, texts: list[str]) -> Any:
    return np.array([routing.none for routing in router.route(texts)])


def scale(train: list[TaskRow], test: list[TaskRow]) -> dict[str, Any]:
    small, _ = train_router(train)
    rows = [*_subtasks(small, train), *_synthetic()]
    by_task: dict[str, list[TaskRow]] = {}
    for row in rows:
        by_task.setdefault(str(row.task), []).append(row)
    names = sorted(name for name, members in by_task.items() if len(members) >= 2 * MIN_EXAMPLES)
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
        router, _ = add_adapter(router, name, [row.input for row in by_task[name][:MIN_EXAMPLES]])
        seconds.append(time.perf_counter() - started)
    texts = [row.input for row in test]
    latencies: dict[str, list[float]] = {"tasks": [], "thousand": []}
    for side in ("tasks", "thousand", "thousand", "tasks") * 2:
        latencies[side] += _latencies(small if side == "tasks" else router, texts)
    return {
        "adapters": len(router.labels),
        "trained_s": round(training_s, 1),
        "parameters": router.network.parameters,
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
    """Rows of each task, relabelled by the cluster they fall in (k-means in the second hidden layer)."""
    relabelled = []
    rng = np.random.default_rng(0)
    for task in router.labels:
        members = [row for row in rows if row.task == task]
        hidden = np.concatenate(
            [
                router.network.forward(router.network.embed(featurise([row.input for row in members[n : n + 64]])))[0]
                for n in range(0, len(members), 64)
            ]
        )
        centres = hidden[rng.choice(len(hidden), min(SUBTASKS, len(hidden) // (2 * MIN_EXAMPLES)), replace=False)]
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


def long(train: list[TaskRow], test: list[TaskRow]) -> dict[str, Any]:
    router, _ = train_router(train)
    text = " ".join(row.input for row in test)
    texts = [text[start : start + LONG] for start in range(0, min(len(text) - LONG, 200 * LONG // 4), LONG // 4)]
    seconds = _latencies(router, texts)
    p50, p99 = (round(float(np.quantile(seconds, share)) * 1e3, 3) for share in (0.5, 0.99))
    return {"characters": LONG, "prompts": len(texts), "p50_ms": p50, "p99_ms": p99}


def main(
    train: Annotated[Path, typer.Argument(help="Training rows.")],
    test: Annotated[Path, typer.Argument(help="Test rows.")],
    quick: Annotated[bool, typer.Option(help="Two tasks for growth, no thousand adapters.")] = False,
) -> None:
    rows, held_out = read_task_rows([train]), read_task_rows([test])
    tasks = sorted({row.task for row in rows if row.task is not None})
    result = {
        **environment(),
        "long": long(rows, held_out),
        **({} if quick else {"scale": scale(rows, held_out)}),
        "growth": growth(rows, held_out, os.cpu_count() or 1, tasks[:2] if quick else tasks),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
