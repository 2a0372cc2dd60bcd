"""Cost of HTTP and Ray Serve compared with calling the engine directly, with and without Serve's throughput mode.

    .venv/bin/python -m benchmarks.http_path [--base MODEL_DIR --bank BANK_FOLDER --adapter NAME] [--quick] [--out FILE]
    .venv/bin/python -m benchmarks.http_path --engine vllm --vllm-python .venv-vllm/bin/python ...

Clients stream answers of 32 tokens, each sending its next request once the last is answered. The sides, each in a
separate process, forward and backward:

    engine      the engine and the text codec of a backbone replica, called from within the process
    serve       the application over HTTP: Serve's own proxy, user code in a separate thread
    throughput  HAProxy and Serve's throughput mode, with the variables that k8s/ sets

One ingress and one backbone replica; requests name the adapter, so no router is involved. Without a model, a tiny
random one is used (needs the `train` extra), and nearly all of the time is the path. Latencies are medians; `added_ms`
is the median answer's latency minus the engine's at the same number of streams, `ratio` the tokens per second relative
to the engine's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import typer

from benchmarks.measure.application import application_config
from benchmarks.measure.harness import ROOT, abba, median_ratio, model_folder, report, run, spread
from benchmarks.measure.targets import Target, target_rows
from deployments.args import AppArgs
from deployments.local.app import LocalApp
from deployments.local.engine import set_engine
from dlp_core.bank.publish import publish
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import BankSource, qualified
from dlp_core.engine.config import Kind
from dlp_core.engine.request import Sampling
from dlp_core.generation.engines import load_engine
from dlp_core.generation.generator import Generator
from dlp_core.mix import Mix
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, write_bank

SIDES: dict[str, dict[str, str]] = {
    "engine": {},
    "serve": {},
    "throughput": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # saves half a minute at the end of a side
    },
}
SIDE = "--side"
"""Internal flag: run the job on standard input, in a process with the side's environment."""

STREAMS = (1, 8, 16, 32)
TARGET_STREAMS = 16
"""Number of streams that has a target."""
TOKENS = 32
PROMPT = "the user and the assistant speak of the adapter"
WARM_UP_S = 2.0

Send = Callable[[int], AsyncIterator[object]]
"""Sends the request with this number; yields an item for each piece of its answer."""

Measurement = dict[str, dict[str, float]]
"""Metrics of one run of a side, by the number of streams."""


@dataclass
class Load:
    """Client-side latencies of answers and first tokens, and the duration of the load, in seconds."""

    totals: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def run_load(send: Send, streams: int, seconds: float) -> Load:
    load = Load()
    started = time.perf_counter()
    numbers = iter(range(sys.maxsize))

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            sent = time.perf_counter()
            first = 0.0
            async for _ in send(next(numbers)):
                first = first or time.perf_counter() - sent
            load.firsts.append(first)
            load.totals.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(streams)))
    load.seconds = time.perf_counter() - started
    return load


async def run_loads(send: Send, streams: Sequence[int], seconds: float) -> Measurement:
    await run_load(send, max(streams), WARM_UP_S)
    result = {}
    for number in streams:
        load = await run_load(send, number, seconds)
        result[str(number)] = {
            "requests_per_s": len(load.totals) / load.seconds,
            "p50_ms": 1000 * median(load.totals),
            "first_token_p50_ms": 1000 * median(load.firsts),
        }
    return result


async def measure_http(url: str, adapter: str, streams: Sequence[int], seconds: float) -> Measurement:
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def send(_: int) -> AsyncIterator[object]:
            async with http.post(f"{url}/v1/completions", json=body) as reply:
                reply.raise_for_status()
                last = b""
                async for line in reply.content:
                    if line.startswith(b"data: "):
                        last = line
                        yield line
                if last.strip() != b"data: [DONE]":
                    raise RuntimeError(f"a stream ended with {last!r}")

        return await run_loads(send, streams, seconds)


async def measure_engine(args: AppArgs, adapter: str, streams: Sequence[int], seconds: float) -> Measurement:
    store = open_store(args.bank)
    manifest = load_manifest(store)
    source = BankSource(store, args.cache.open())
    source.add(manifest)
    loaded = load_engine(Path(args.base_model), source, args.engine, dtype=args.dtype, threads=args.threads)
    engine, generator = loaded.engine, Generator(loaded.engine, loaded.codec)
    mix = qualified(Mix.of({adapter: 1.0}), manifest)
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    await engine.start()

    async def send(number: int) -> AsyncIterator[object]:
        async with aclosing(generator.generate(PROMPT, mix, sampling, request_id=str(number))) as pieces:
            async for piece in pieces:
                yield piece

    try:
        return await run_loads(send, streams, seconds)
    finally:
        await engine.stop()


def measure(side: str, config: dict[str, Any], adapter: str, streams: Sequence[int], seconds: float) -> Measurement:
    args = config["applications"][0]["args"]
    if side == "engine":
        return asyncio.run(measure_engine(AppArgs.model_validate(args), adapter, streams, seconds))
    with LocalApp(config, bank=args["bank"], base_model=Path(args["base_model"])) as app:
        app.wait_until_ready()
        return asyncio.run(measure_http(app.url, adapter, streams, seconds))


def rows(runs: Mapping[str, Sequence[Measurement]]) -> list[dict[str, Any]]:
    result = []
    for streams in runs["engine"][0]:
        rates = {side: [run[streams]["requests_per_s"] for run in side_runs] for side, side_runs in runs.items()}
        p50 = {side: median(run[streams]["p50_ms"] for run in side_runs) for side, side_runs in runs.items()}
        for side, side_runs in runs.items():
            result.append(
                {
                    "streams": int(streams),
                    "side": side,
                    "requests_per_s": round(median(rates[side]), 2),
                    "tokens_per_s": round(TOKENS * median(rates[side]), 1),
                    "p50_ms": round(p50[side], 1),
                    "first_token_p50_ms": round(median(run[streams]["first_token_p50_ms"] for run in side_runs), 1),
                    "added_ms": round(p50[side] - p50["engine"], 1),
                    "spread": round(spread(rates[side]), 3),
                    "ratio": round(median_ratio(rates[side], rates["engine"]), 3),
                }
            )
    return result


def main(
    *,
    base: Annotated[Path | None, typer.Option(help="Folder of a model.")] = None,
    bank: Annotated[Path | None, typer.Option(help="Bank folder for it.")] = None,
    adapter: Annotated[str, typer.Option(help="Adapter of the bank that serves all requests.")] = "sql",
    dtype: Annotated[str, typer.Option(help="Precision of the backbone.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the backbone.")] = 1,
    engine: Annotated[Kind, typer.Option(help="What runs the model.")] = "transformers",
    vllm_python: Annotated[
        Path | None, typer.Option(envvar="VLLM_PYTHON", help="Python of an environment with vLLM, for its engine.")
    ] = None,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each load.")] = 10.0,
    quick: Annotated[bool, typer.Option(help="16 streams only, for 3 seconds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    stream_counts: Sequence[int] = streams or STREAMS
    if quick:
        stream_counts, seconds = [TARGET_STREAMS], 3.0
    runs: dict[str, list[Measurement]] = {name: [] for name in SIDES}
    with TemporaryDirectory(prefix="dlp-http-") as temporary:
        work = Path(temporary)
        if base is None or bank is None:
            write_bank(work)
            base, bank = work / BASE, work / "bank"
        publish(open_store(str(work / "store")), bank)
        config = application_config(work, dtype=dtype, threads=threads)
        application = config["applications"][0]
        application["args"] |= {"bank": str(work / "store"), "base_model": str(model_folder(base).resolve())}
        for deployment in application["deployments"]:
            deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
        inside = vllm_python if engine == "vllm" else None
        set_engine(config, engine, inside)
        for name in abba(SIDES):
            print(f"{name} ...", file=sys.stderr)
            job = {"side": name, "config": config, "adapter": adapter, "streams": stream_counts, "seconds": seconds}
            python = str(inside) if inside and name == "engine" else sys.executable
            runs[name].append(run_side(job, SIDES[name], python))
    result = rows(runs)
    targets = target_rows(
        [
            Target(f"HTTP ({row['side']}) over the engine, {row['streams']} streams", row["ratio"], 0.8, at_least=True)
            for row in result
            if row["streams"] == TARGET_STREAMS and row["side"] != "engine"
        ]
    )
    settings = {"model": base.name, "engine": engine, "dtype": dtype, "tokens": TOKENS, "seconds": seconds}
    report("http path", result, out=out, **settings, targets=targets)


def run_side(job: Mapping[str, Any], variables: Mapping[str, str], python: str) -> Measurement:
    """Run a job in a new process, because Ray reads `variables` when it is imported."""
    command = [python, "-m", "benchmarks.http_path", SIDE]
    environment = {**os.environ, **variables}
    completed = subprocess.run(
        command, env=environment, input=json.dumps(job), stdout=subprocess.PIPE, check=True, text=True
    )
    measurement: Measurement = json.loads(completed.stdout.splitlines()[-1])
    return measurement


if __name__ == "__main__":
    if sys.argv[1:] == [SIDE]:
        print(json.dumps(measure(**json.load(sys.stdin))))
    else:
        run(main)
