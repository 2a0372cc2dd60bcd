"""What HTTP and Ray Serve cost over calling the engine directly, with and without Serve's throughput mode.

    .venv/bin/python -m benchmarks.http_path [--base MODEL_DIR --bank BANK_FOLDER --adapter NAME] [--quick] [--out FILE]

Clients stream answers of 32 tokens, each its next request as soon as the last is answered. The sides, each a process of
its own, in turn and back:

    engine      the engine and the text codec of a backbone replica, called from this process
    serve       the application over HTTP: Serve's own proxy, user code on a thread of its own
    throughput  HAProxy and Serve's throughput mode, by the variables that k8s/ sets

One ingress and one backbone replica; the adapter is named, so no router takes part. Without a model, a tiny random one
serves: then nearly all there is to see is the path (it needs the `train` extra). Latencies are medians; `added_ms` is
what the median answer takes longer than the engine's at as many streams, `ratio` the tokens a second over the engine's.
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
from benchmarks.measure.harness import ROOT, abba, model_folder, over, report, run, spread
from benchmarks.measure.targets import Target, judged
from deployments.args import AppArgs
from deployments.local.app import LocalApp
from dlp_core.bank.publish import publish
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import BankSource, qualified
from dlp_core.engine.loading import load as load_engine
from dlp_core.engine.request import Sampling
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
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # half a minute less to wait for at the end of a side
    },
}
SIDE = "--side"
"""Runs what standard input says, in a process with the side's environment."""

STREAMS = (1, 8, 16, 32)
JUDGED = 16
"""Streams for which there is a target."""
TOKENS = 32
PROMPT = "the user and the assistant speak of the adapter"
WARM_UP_S = 2.0

Ask = Callable[[int], AsyncIterator[object]]
"""One request, by its number: an item for each piece of its answer."""

Found = dict[str, dict[str, float]]
"""What one run of a side measured, by the number of streams."""


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


async def loads(ask: Ask, streams: Sequence[int], seconds: float) -> Found:
    await load(ask, max(streams), WARM_UP_S)
    result = {}
    for number in streams:
        found = await load(ask, number, seconds)
        result[str(number)] = {
            "requests_per_s": len(found.totals) / found.seconds,
            "p50_ms": 1000 * median(found.totals),
            "first_token_p50_ms": 1000 * median(found.firsts),
        }
    return result


async def over_http(url: str, adapter: str, streams: Sequence[int], seconds: float) -> Found:
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

        return await loads(ask, streams, seconds)


async def directly(args: AppArgs, adapter: str, streams: Sequence[int], seconds: float) -> Found:
    store = open_store(args.bank)
    manifest = load_manifest(store)
    source = BankSource(store, args.cache.open())
    source.add(manifest)
    loaded = load_engine(
        Path(args.base_model), source, args.engine, dtype=args.dtype, device="cpu", threads=args.threads
    )
    engine, generator = loaded.engine, Generator(loaded.engine, loaded.codec)
    mix = qualified(Mix.of({adapter: 1.0}), manifest)
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    engine.start()

    async def ask(number: int) -> AsyncIterator[object]:
        async with aclosing(generator.generate(PROMPT, mix, sampling, request_id=str(number))) as pieces:
            async for piece in pieces:
                yield piece

    try:
        return await loads(ask, streams, seconds)
    finally:
        await engine.stop()


def measure(side: str, config: dict[str, Any], adapter: str, streams: Sequence[int], seconds: float) -> Found:
    args = config["applications"][0]["args"]
    if side == "engine":
        return asyncio.run(directly(AppArgs.model_validate(args), adapter, streams, seconds))
    with LocalApp(config, bank=args["bank"], base_model=Path(args["base_model"])) as app:
        app.wait_until_ready()
        return asyncio.run(over_http(app.url, adapter, streams, seconds))


def rows(runs: Mapping[str, Sequence[Found]]) -> list[dict[str, Any]]:
    result = []
    for streams in runs["engine"][0]:
        rates = {side: [found[streams]["requests_per_s"] for found in of_side] for side, of_side in runs.items()}
        p50 = {side: median(found[streams]["p50_ms"] for found in of_side) for side, of_side in runs.items()}
        for side, of_side in runs.items():
            result.append(
                {
                    "streams": int(streams),
                    "side": side,
                    "requests_per_s": round(median(rates[side]), 2),
                    "tokens_per_s": round(TOKENS * median(rates[side]), 1),
                    "p50_ms": round(p50[side], 1),
                    "first_token_p50_ms": round(median(found[streams]["first_token_p50_ms"] for found in of_side), 1),
                    "added_ms": round(p50[side] - p50["engine"], 1),
                    "spread": round(spread(rates[side]), 3),
                    "ratio": round(over(rates[side], rates["engine"]), 3),
                }
            )
    return result


def main(
    *,
    base: Annotated[Path | None, typer.Option(help="Folder of a model.")] = None,
    bank: Annotated[Path | None, typer.Option(help="Bank folder for it.")] = None,
    adapter: Annotated[str, typer.Option(help="Of the bank, that serves all requests.")] = "sql",
    dtype: Annotated[str, typer.Option(help="Of the backbone.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Of the backbone.")] = 1,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 10.0,
    quick: Annotated[bool, typer.Option(help="16 streams only, for 3 seconds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    numbers: Sequence[int] = streams or STREAMS
    if quick:
        numbers, seconds = [JUDGED], 3.0
    runs: dict[str, list[Found]] = {name: [] for name in SIDES}
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
        for name in abba(SIDES):
            print(f"{name} ...", file=sys.stderr)
            job = {"side": name, "config": config, "adapter": adapter, "streams": numbers, "seconds": seconds}
            runs[name].append(in_a_process(job, SIDES[name]))
    found = rows(runs)
    kept = judged(
        [
            Target(f"HTTP ({row['side']}) over the engine, {row['streams']} streams", row["ratio"], 0.75, at_least=True)
            for row in found
            if row["streams"] == JUDGED and row["side"] != "engine"
        ]
    )
    settings = {"model": base.name, "dtype": dtype, "tokens": TOKENS, "seconds": seconds}
    report("http path", found, out=out, **settings, targets=kept)


def in_a_process(job: Mapping[str, Any], variables: Mapping[str, str]) -> Found:
    """`variables` are read when Ray is imported."""
    command = [sys.executable, "-m", "benchmarks.http_path", SIDE]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, env=environment, input=json.dumps(job), stdout=subprocess.PIPE, check=True, text=True
    )
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if sys.argv[1:] == [SIDE]:
        print(json.dumps(measure(**json.load(sys.stdin))))
    else:
        run(main)
