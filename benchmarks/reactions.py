"""How soon the application reacts to what happens to it.

    .venv/bin/python -m benchmarks.reactions [--quick] [--out FILE]

A tiny random model serves 16 streams that go on until something ends them. Rows, each over the rounds:

    client leaves     from there until its replica holds nothing for it: place, adapters, cache blocks
    deadline passes   from the last error event until the replica holds nothing
    bank published    from there until new requests run on it; the pointer is looked at every half second
    replica killed    from there until the next one, the only one, answers; its health is checked every second

Those that docs/operations.md promises have a target.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import typer

from benchmarks.measure.harness import report, run
from benchmarks.measure.targets import Target, judged
from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from tests.support.application import BANK, Application, ask, back_to_bank_one, make_bank, running, serving
from tests.support.replicas import ENDLESS, replicas, stats, wait_until_idle
from tests.support.streams import question, streams
from tests.support.waiting import wait_for

STREAMS = 16
DEADLINE_S = 5.0
PROMISED_S = {"client leaves": 1.0, "deadline passes": 1.0}


def client_leaves(app: Application) -> float:
    async def come_and_go() -> float:
        async with httpx.AsyncClient(timeout=None, limits=httpx.Limits()) as http:
            calls = [
                asyncio.create_task(http.post(f"{app.url}/v1/completions", json=question(number, ENDLESS)))
                for number in range(STREAMS)
            ]
            await asyncio.to_thread(wait_for, lambda: sum(one.running for one in stats()) == STREAMS, "streams")
            began = time.perf_counter()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            return began

    began = asyncio.run(come_and_go())
    wait_until_idle()
    return time.perf_counter() - began


def deadline_passes(app: Application) -> float:
    with streams(app, [question(number, ENDLESS) for number in range(STREAMS)]) as heard:
        pass
    began = time.perf_counter()
    wait_until_idle()
    seconds = time.perf_counter() - began
    if any(one.error is None or one.error["code"] != "deadline_exceeded" for one in heard):
        raise RuntimeError("a stream ended before its deadline")
    return seconds


def bank_published(app: Application) -> float:
    version = f"at-{time.monotonic_ns()}"
    began = time.perf_counter()
    publish(open_store(BANK), app.folder / "bank", version=version)
    wait_for(lambda: serving(app) == version, f"bank {version}")
    seconds = time.perf_counter() - began
    back_to_bank_one(app)
    return seconds


def replica_killed(app: Application) -> float:
    [pid] = replicas("FusedBackbone").values()
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: ask(app, "hello", model="sql")["status"] == 200, "answer")
    seconds = time.perf_counter() - began
    wait_for(lambda: len(replicas("FusedBackbone")) == 1, "sight of the new replica")
    return seconds


WHAT: dict[str, Callable[[Application], float]] = {
    "client leaves": client_leaves,
    "deadline passes": deadline_passes,
    "bank published": bank_published,
    "replica killed": replica_killed,
}


def row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {"what": what, "median_s": round(median(seconds), 3), "most_s": round(max(seconds), 3)}


def main(
    quick: Annotated[bool, typer.Option(help="Two rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    rounds = 2 if quick else 8
    with TemporaryDirectory(prefix="dlp-reactions-") as temporary:
        make_bank(Path(temporary))
        with running(Path(temporary), queue=STREAMS, limits={"request_timeout_s": DEADLINE_S}) as app:
            measured = {what: [react(app) for _ in range(rounds)] for what, react in WHAT.items()}
    targets = [Target(f"{what}: seconds", max(measured[what]), bound) for what, bound in PROMISED_S.items()]
    rows = [row(what, seconds) for what, seconds in measured.items()]
    report("reactions", rows, out=out, rounds=rounds, streams=STREAMS, targets=judged(targets))


if __name__ == "__main__":
    run(main)
