"""How soon the application reacts to what happens to it.

    .venv/bin/python -m benchmarks.reactions [--quick] [--out FILE]

A tiny random model serves 16 streams that go on until something ends them. Rows, each over the rounds:

    client leaves     from there until its replica holds nothing for it: place, adapters, cache blocks
    deadline passes   from the last error event until the replica holds nothing
    bank published    from there until new requests run on it; the pointer is looked at every half second
    replica killed    from there until the next one, the only one, answers; its health is checked every second

Those that docs/operations.md promises have a target. Needs the `train` extra.
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
from typing import Annotated, Any, NamedTuple

import httpx
import typer

from benchmarks.measure.application import application_config
from benchmarks.measure.harness import ROOT, report, run
from benchmarks.measure.replicas import idle, replicas, stats
from benchmarks.measure.targets import Target, target_rows
from deployments.local.app import LocalApp
from dlp_core.bank.publish import publish, rollback
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, TASKS, write_bank

STREAMS = 16
ENDLESS = 4000
"""Tokens of a stream that does not end by itself."""
DEADLINE_S = 5.0
GIVE_UP_S = 120.0
PROMISED_S = {"client leaves": 1.0, "deadline passes": 1.0}


class Application(NamedTuple):
    url: str
    store: str
    folder: Path
    """Of the bank that is published."""


def wait_until(happened: Callable[[], bool], what: str) -> float:
    """Seconds until `happened()`."""
    began = time.perf_counter()
    while not happened():
        if time.perf_counter() - began > GIVE_UP_S:
            raise RuntimeError(f"{what}: not within {GIVE_UP_S:g} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def question(number: int) -> dict[str, Any]:
    name = sorted(TASKS)[number % len(TASKS)]
    return {"model": name, "prompt": TASKS[name].format(number), "max_tokens": ENDLESS, "stream": True}


async def last_lines(app: Application) -> list[str]:
    """The last event of each of the streams, which run at the same time."""
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits()) as http:

        async def listen(number: int) -> str:
            last = ""
            async with http.stream("POST", f"{app.url}/v1/completions", json=question(number)) as reply:
                async for line in reply.aiter_lines():
                    last = line or last
            return last

        return await asyncio.gather(*(listen(number) for number in range(STREAMS)))


def all_run() -> bool:
    return sum(engine.running for engine in stats()) == STREAMS


def client_leaves(app: Application) -> float:
    async def come_and_go() -> None:
        listening = asyncio.create_task(last_lines(app))
        await asyncio.to_thread(wait_until, all_run, "all streams run")
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(come_and_go())
    return wait_until(idle, "nothing is held for clients that left")


def deadline_passes(app: Application) -> float:
    ends = asyncio.run(last_lines(app))
    seconds = wait_until(idle, "nothing is held after the deadline")
    if not all("deadline_exceeded" in end for end in ends):
        raise RuntimeError("a stream ended before its deadline")
    return seconds


def bank_published(app: Application) -> float:
    version = f"at-{time.monotonic_ns()}"
    began = time.perf_counter()
    publish(open_store(app.store), app.folder, version=version)
    wait_until(lambda: serving(app) == version, f"bank {version} serves")
    seconds = time.perf_counter() - began
    rollback(open_store(app.store), "one")
    wait_until(lambda: serving(app) == "one", "bank one serves again")
    return seconds


def serving(app: Application) -> str:
    return str(httpx.get(f"{app.url}/health", timeout=GIVE_UP_S).json()["bank"])


def replica_killed(app: Application) -> float:
    body = {"model": "sql", "prompt": "hello", "max_tokens": 4}

    def answers() -> bool:
        return httpx.post(f"{app.url}/v1/completions", json=body, timeout=GIVE_UP_S).status_code == 200

    [pid] = replicas("FusedBackbone").values()
    os.kill(pid, signal.SIGKILL)
    seconds = wait_until(answers, "a new replica answers")
    wait_until(lambda: len(replicas("FusedBackbone")) == 1, "Serve lists the new replica")
    return seconds


WHAT: dict[str, Callable[[Application], float]] = {
    "client leaves": client_leaves,
    "deadline passes": deadline_passes,
    "bank published": bank_published,
    "replica killed": replica_killed,
}


def serve_config(work: Path) -> dict[str, Any]:
    config = application_config(work)
    application = config["applications"][0]
    application["args"] |= {"limits": {"request_timeout_s": DEADLINE_S}, "bank_poll_s": 0.5}
    application["args"]["engine"] |= {"max_requests": STREAMS, "cache_tokens": 2 * STREAMS * ENDLESS}
    for deployment in application["deployments"]:
        deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
        if deployment["name"] == "FusedBackbone":
            deployment |= {"max_ongoing_requests": STREAMS + 1, "max_queued_requests": STREAMS}
    return config


def row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {"what": what, "median_s": round(median(seconds), 3), "max_s": round(max(seconds), 3)}


def main(
    quick: Annotated[bool, typer.Option(help="Two rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    rounds = 2 if quick else 8
    with TemporaryDirectory(prefix="dlp-reactions-") as temporary:
        work = Path(temporary)
        write_bank(work)
        store = str(work / "store")
        publish(open_store(store), work / "bank", version="one")
        with LocalApp(serve_config(work), bank=store, base_model=work / BASE) as local:
            local.wait_until_ready()
            app = Application(local.url, store, work / "bank")
            measured = {what: [react(app) for _ in range(rounds)] for what, react in WHAT.items()}
    targets = [Target(f"{what}: seconds", max(measured[what]), bound) for what, bound in PROMISED_S.items()]
    rows = [row(what, seconds) for what, seconds in measured.items()]
    report("reactions", rows, out=out, rounds=rounds, streams=STREAMS, targets=target_rows(targets))


if __name__ == "__main__":
    run(main)
