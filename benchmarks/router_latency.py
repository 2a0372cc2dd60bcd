"""What routing costs: one prompt on one thread, prompts in batches, and loading the router.

    .venv/bin/python -m benchmarks.router_latency [--router DIR] [--quick] [--out FILE]

The router of the demo bank, and the same with its outputs repeated to 100 and 1,000 adapters: where those would send a
prompt means nothing, what they cost is what routers of so many adapters cost (`benchmarks.router` trains one). Prompts
are held-out rows of the demo's tasks and prompts of no task. `ratio` is over the demo's router, for one prompt.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy: latencies are those of one thread

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import ROOT, abba, over, report, run, spread
from dlp_core.router import Router
from examples.bank.tasks import TASKS, background_rows, rows

ADAPTERS = (100, 1000)
BATCH = 64


def widened(router: Router, adapters: int) -> Router:
    """A router of so many adapters, each one a copy of one there is."""
    labels = [router.labels[number % len(router.labels)] for number in range(adapters)]
    return replace(router.only(labels), labels=tuple(f"{label}-{number}" for number, label in enumerate(labels)))


def held_out(count: int) -> list[str]:
    """Prompts of every task and of none, one after the other."""
    each = -(-count // (len(TASKS) + 1))
    found = [rows(task, "heldout", each) for task in TASKS] + [background_rows("heldout", each)]
    return [str(row["input"]) for of_one in zip(*found, strict=True) for row in of_one][:count]


def alone(router: Router, prompts: Sequence[str]) -> list[float]:
    """Seconds of each prompt, one at a time."""
    router.route(prompts[:16])
    seconds = []
    for prompt in prompts:
        began = time.perf_counter()
        router.route([prompt])
        seconds.append(time.perf_counter() - began)
    return seconds


def batched(router: Router, prompts: Sequence[str]) -> float:
    """Prompts a second."""
    began = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        router.route(prompts[start : start + BATCH])
    return len(prompts) / (time.perf_counter() - began)


def loading(folder: Path) -> float:
    began = time.perf_counter()
    Router.load(folder)
    return time.perf_counter() - began


def measure(routers: dict[int, Router], prompts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    single: dict[int, list[list[float]]] = {number: [] for number in routers}
    rates: dict[int, list[float]] = {number: [] for number in routers}
    loads: dict[int, list[float]] = {number: [] for number in routers}
    with TemporaryDirectory(prefix="dlp-router-") as temporary:
        for number, router in routers.items():
            router.save(Path(temporary, str(number)))
        for number in abba(routers, rounds):
            loads[number].append(loading(Path(temporary, str(number))))
            single[number].append(alone(routers[number], prompts))
            rates[number].append(batched(routers[number], prompts))
    middles = {number: [median(seconds) for seconds in of_one] for number, of_one in single.items()}
    base = next(iter(routers))
    result = []
    for number, router in routers.items():
        seconds = [second for run in single[number] for second in run]
        result.append(
            {
                "adapters": number,
                "parameters": router.network.parameters,
                "p50_ms": round(1000 * median(seconds), 4),
                "p99_ms": round(1000 * quantiles(seconds, n=100)[98], 4),
                "spread": round(spread(middles[number]), 3),
                "prompts_per_s": round(median(rates[number])),
                "load_ms": round(1000 * median(loads[number]), 1),
                "ratio": round(over(middles[number], middles[base]), 3),
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
