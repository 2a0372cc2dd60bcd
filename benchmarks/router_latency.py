"""Cost of routing: one prompt on one thread, prompts in batches, and loading the router.

    .venv/bin/python -m benchmarks.router_latency [--router DIR] [--quick] [--out FILE]

The router of the demo bank, and the same router with its outputs repeated to 100 and 1,000 adapters: their choices mean
nothing, but their cost is that of a router with as many adapters (`benchmarks.router` trains one). Prompts are held-out
rows of the demo's tasks and prompts of no task. `ratio` is relative to the demo's router, for one prompt.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported: latencies are for one thread

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import ROOT, abba, median_ratio, report, run, spread
from dlp_core.router import Router
from examples.bank.tasks import TASKS, background_rows, rows

ADAPTERS = (100, 1000)
BATCH = 64


def widened(router: Router, adapters: int) -> Router:
    """A router with `adapters` outputs, each a copy of one of `router`'s."""
    labels = [router.labels[number % len(router.labels)] for number in range(adapters)]
    return replace(router.only(labels), labels=tuple(f"{label}-{number}" for number, label in enumerate(labels)))


def held_out(count: int) -> list[str]:
    """Prompts of every task and of no task, in turn."""
    per_task = -(-count // (len(TASKS) + 1))
    by_task = [rows(task, "heldout", per_task) for task in TASKS] + [background_rows("heldout", per_task)]
    return [str(row["input"]) for group in zip(*by_task, strict=True) for row in group][:count]


def single_latencies(router: Router, prompts: Sequence[str]) -> list[float]:
    """Seconds of each prompt, one at a time."""
    router.route(prompts[:16])
    seconds = []
    for prompt in prompts:
        started = time.perf_counter()
        router.route([prompt])
        seconds.append(time.perf_counter() - started)
    return seconds


def batch_rate(router: Router, prompts: Sequence[str]) -> float:
    """Prompts per second in batches."""
    started = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        router.route(prompts[start : start + BATCH])
    return len(prompts) / (time.perf_counter() - started)


def load_seconds(folder: Path) -> float:
    started = time.perf_counter()
    Router.load(folder)
    return time.perf_counter() - started


def measure(routers: dict[int, Router], prompts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    single: dict[int, list[list[float]]] = {number: [] for number in routers}
    rates: dict[int, list[float]] = {number: [] for number in routers}
    loads: dict[int, list[float]] = {number: [] for number in routers}
    with TemporaryDirectory(prefix="dlp-router-") as temporary:
        for number, router in routers.items():
            router.save(Path(temporary, str(number)))
        for number in abba(routers, rounds):
            loads[number].append(load_seconds(Path(temporary, str(number))))
            single[number].append(single_latencies(routers[number], prompts))
            rates[number].append(batch_rate(routers[number], prompts))
    medians = {number: [median(seconds) for seconds in runs] for number, runs in single.items()}
    base = next(iter(routers))
    result = []
    for number, router in routers.items():
        seconds = [latency for run in single[number] for latency in run]
        result.append(
            {
                "adapters": number,
                "parameters": router.parameters,
                "p50_ms": round(1000 * median(seconds), 4),
                "p99_ms": round(1000 * quantiles(seconds, n=100)[98], 4),
                "spread": round(spread(medians[number]), 3),
                "prompts_per_s": round(median(rates[number])),
                "load_ms": round(1000 * median(loads[number]), 1),
                "ratio": round(median_ratio(medians[number], medians[base]), 3),
            }
        )
    return result


def main(
    router: Annotated[Path, typer.Option(help="Folder of a router.")] = ROOT / "examples/bank/router",
    quick: Annotated[bool, typer.Option(help="Fewer prompts.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    loaded = Router.load(router)
    routers = {len(loaded.labels): loaded} | {number: widened(loaded, number) for number in ADAPTERS}
    prompts = held_out(256 if quick else 1024)
    result = measure(routers, prompts, rounds=1 if quick else 4)
    report("router", result, out=out, prompts=len(prompts), batch=BATCH)


if __name__ == "__main__":
    run(main)
