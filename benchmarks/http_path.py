"""What HTTP and Ray Serve cost over calling the engine directly, with and without Serve's throughput mode.

    .venv/bin/python -m benchmarks.http_path [--base MODEL_DIR --bank BANK_FOLDER --adapter NAME]

Clients stream answers of 32 tokens, each its next request as soon as the last is answered, 1, 8 and 32 at a time. The
sides, each a process of its own, in turn and back:

    engine      the engine and the text codec of a backbone replica, called from this process
    serve       the application over HTTP: Serve's own proxy, user code on a thread of its own
    throughput  HAProxy and Serve's throughput mode, by the variables that k8s/ sets

One ingress and one backbone replica; the adapter is named, so no router takes part. Without a model, a tiny random one
serves: then nearly all there is to see is the path. Prints one JSON object; latencies are in milliseconds, medians over
both runs, `added` is over the engine's at as many streams. Needs the `train` extra.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import typer

from deployments.args import AppArgs
from deployments.completions import Completions
from deployments.generation import GenerationRequest
from deployments.load_engine import load_engine
from deployments.local_app import LocalApp, load_config
from deployments.metrics import EngineMetrics
from dlp_core.bank import load_manifest
from dlp_core.bank_source import BankSource
from dlp_core.disk_cache import DiskCache
from dlp_core.mix import Mix
from dlp_core.publish import publish
from dlp_core.store import open_store
from tests.application import BASE, ROOT, free_port, make_bank

SIDES: dict[str, dict[str, str]] = {
    "engine": {},
    "serve": {},
    "throughput": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    },
}
SIDE = "--side"
"""Runs what standard input says, in a process with the side's environment."""

STREAMS = (1, 8, 32)
TOKENS = 32
PROMPT = "the user and the assistant speak of the adapter"
WARM_UP_S = 2.0

Ask = Callable[[int], AsyncIterator[object]]
"""One request, by its number: an item for each piece of its answer."""


@dataclass
class Load:
    """What clients saw. Seconds."""

    totals: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def load(ask: Ask, streams: int, seconds: float) -> Load:
    found = Load()
    began = time.perf_counter()
    numbers = iter(range(sys.maxsize))

    async def client() -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            first = 0.0
            async for _ in ask(next(numbers)):
                first = first or time.perf_counter() - sent
            found.firsts.append(first)
            found.totals.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(streams)))
    found.seconds = time.perf_counter() - began
    return found


async def loads(ask: Ask, seconds: float) -> dict[int, dict[str, float]]:
    await load(ask, max(STREAMS), WARM_UP_S)
    result = {}
    for streams in STREAMS:
        found = await load(ask, streams, seconds)
        result[streams] = {
            "requests_per_s": len(found.totals) / found.seconds,
            "p50_ms": 1000 * median(found.totals),
            "first_token_p50_ms": 1000 * median(found.firsts),
        }
    return result


def config_of(dtype: str, work: Path) -> dict[str, Any]:
    config = load_config(ROOT / "serve_config.yaml")
    args = config["applications"][0]["args"]
    args |= {"dtype": dtype, "threads": 1, "cache": {"path": str(work / "cache")}}
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 0.1
        deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    return config


async def over_http(url: str, adapter: str, seconds: float) -> dict[int, dict[str, float]]:
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def ask(_: int) -> AsyncIterator[object]:
            async with http.post(f"{url}/v1/completions", json=body) as reply:
                reply.raise_for_status()
                last = b""
                async for line in reply.content:
                    if line.startswith(b"data: "):
                        last = line
                        yield line
                if last.strip() != b"data: [DONE]":
                    raise RuntimeError(f"a stream ended with {last!r}")

        return await loads(ask, seconds)


async def directly(args: AppArgs, adapter: str, seconds: float) -> dict[int, dict[str, float]]:
    store, metrics = open_store(args.bank), EngineMetrics()
    manifest = load_manifest(store)
    source = BankSource(store, DiskCache(args.cache.path, args.cache.max_bytes))
    source.add(manifest)
    engine, codec = load_engine(args, source, device="cpu", on_load=metrics.loaded)
    completions = Completions(engine, codec, args)
    engine.start()

    async def ask(number: int) -> AsyncIterator[object]:
        request = GenerationRequest(
            str(number), manifest.version, Mix.of({adapter: 1.0}), PROMPT, TOKENS, ignore_eos=True
        )
        async with aclosing(completions.pieces(request, manifest, None, metrics.stopwatch())) as pieces:
            async for piece in pieces:
                yield piece

    try:
        return await loads(ask, seconds)
    finally:
        await engine.stop()


def measure(side: str, config: dict[str, Any], adapter: str, seconds: float) -> dict[int, Any]:
    args = config["applications"][0]["args"]
    if side == "engine":
        logging.disable(logging.WARNING)  # metrics without Ray
        return asyncio.run(directly(AppArgs.model_validate(args), adapter, seconds))
    with LocalApp(config, bank=args["bank"], base_model=Path(args["base_model"]), port=free_port()) as app:
        app.wait_until_ready()
        return asyncio.run(over_http(app.url, adapter, seconds))


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for streams in map(str, STREAMS):
        row: dict[str, dict[str, float]] = {}
        for name, of_side in runs.items():
            found = [run[streams] for run in of_side]
            row[name] = {key: round(median(one[key] for one in found), 2) for key in found[0]}
        for name in ("serve", "throughput"):
            row[name]["added_p50_ms"] = round(row[name]["p50_ms"] - row["engine"]["p50_ms"], 2)
            row[name]["of_engine_requests"] = round(row[name]["requests_per_s"] / row["engine"]["requests_per_s"], 3)
        result[streams] = row
    return result


def main(
    base: Annotated[Path | None, typer.Option(help="Folder of a model.")] = None,
    bank: Annotated[Path | None, typer.Option(help="Bank folder for it.")] = None,
    adapter: Annotated[str, typer.Option(help="Of the bank, that serves all requests.")] = "sql",
    dtype: Annotated[str, typer.Option(help="Of the backbone.")] = "float32",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 10.0,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with TemporaryDirectory(prefix="dlp-http-") as temporary:
        work = Path(temporary)
        if base is None or bank is None:
            make_bank(work)
            base, bank = work / BASE, work / "bank"
        publish(open_store(str(work / "store")), bank)
        config = config_of(dtype, work)
        config["applications"][0]["args"] |= {"bank": str(work / "store"), "base_model": str(base.resolve())}
        for name in (*SIDES, *reversed(SIDES)):
            print(f"{name} ...", file=sys.stderr)
            job = json.dumps({"side": name, "config": config, "adapter": adapter, "seconds": seconds})
            command = [sys.executable, "-m", "benchmarks.http_path", SIDE]
            environment = os.environ | SIDES[name]  # read when Ray is imported
            done = subprocess.run(command, env=environment, input=job, stdout=subprocess.PIPE, check=True, text=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    settings = {"model": base.name, "dtype": dtype, "tokens": TOKENS, "seconds": seconds}
    print(json.dumps({**machine, **settings, "streams": summary(runs), "runs": runs}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == [SIDE]:
        print(json.dumps(measure(**json.load(sys.stdin))))
    else:
        typer.run(main)
