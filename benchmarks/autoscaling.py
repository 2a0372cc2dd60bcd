"""Traces of the backbone's autoscaling policy on a local cluster under load.

    .venv/bin/python -m benchmarks.autoscaling > benchmarks/results/autoscaling.json

A tiny random model, at most three replicas, and delays of seconds instead of minutes; each kind of load lasts 40 s and
is followed by 25 s of silence. Prints one JSON object: for each kind of load, once a second, the sums that all replicas
reported (`requests`, `tokens`, `adapters`), the requests queued at the callers (`queued`), and Serve's target number of
replicas. tests/deployments/fleet/test_autoscaling_traces.py replays the traces. Needs the `train` extra.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from ray.serve.config import AutoscalingContext

from benchmarks.measure.application import application_config
from benchmarks.measure.harness import ROOT, run
from deployments.fleet.autoscaling import ADAPTERS, REQUESTS, TOKENS, BackbonePolicy, Decision
from deployments.local.app import LocalApp
from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, write_bank

LOAD_S, SILENCE_S = 40, 25
QUEUE = 16
ENGINE = {"slots": 2, "cache_tokens": 8192, "max_requests": QUEUE}
ROUTING = {"default_max_adapters": 2, "max_adapters": 2}

Body = dict[str, Any]


class Recorder(BackbonePolicy):
    """The policy, which also records its inputs once a second."""

    def __init__(self, *, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = path
        self._last = 0.0

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        if ctx.current_time - self._last >= 1:
            self._last = ctx.current_time
            sample = {key: sum(ctx.aggregated_metrics.get(key, {}).values()) for key in (REQUESTS, TOKENS, ADAPTERS)}
            sample |= {"time": ctx.current_time, "queued": ctx.total_queued_requests, "target": ctx.target_num_replicas}
            with Path(self._path).open("a") as file:
                file.write(json.dumps(sample) + "\n")
        return super().__call__(ctx)


SCALING = {
    "max_replicas": 3,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 2,
    "downscale_delay_s": 6,
    "look_back_period_s": 2,
    "metrics_interval_s": 0.5,
}


@contextmanager
def clients(url: str, count: int, bodies: Iterator[Body]) -> Iterator[list[int]]:
    """Run `count` clients that send one request after another. Yields the statuses of the answers so far."""
    done, lock = threading.Event(), threading.Lock()
    statuses: list[int] = []

    def client() -> None:
        with httpx.Client(timeout=120) as http:
            while not done.is_set():
                with lock:
                    body = next(bodies)
                statuses.append(http.post(f"{url}/v1/completions", json=body).status_code)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(client) for _ in range(count)]
        try:
            yield statuses
        finally:
            done.set()
            for future in futures:
                future.result()


def steady(url: str) -> list[int]:
    """A step: eleven clients with answers of 100 tokens."""

    def bodies() -> Iterator[Body]:
        while True:
            yield {"model": "sql", "prompt": "the user", "max_tokens": 100}

    with clients(url, 11, bodies()) as statuses:
        time.sleep(LOAD_S)
    return statuses


def bursts(url: str) -> list[int]:
    """Bursts: twelve requests at once, every eight seconds."""
    body = {"model": "sql", "prompt": "the user", "max_tokens": 100}
    statuses: list[int] = []
    with ThreadPoolExecutor(12) as pool:
        for _ in range(LOAD_S // 8):
            started = time.monotonic()
            answers = pool.map(
                lambda _: httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code, range(12)
            )
            statuses += answers
            time.sleep(max(0.0, 8 - (time.monotonic() - started)))
    return statuses


def long_prompts(url: str) -> list[int]:
    """Six clients with distinct prompts of about 2,000 tokens each: three fill the cache."""
    rng = Random(1)

    def bodies() -> Iterator[Body]:
        while True:
            prompt = " ".join(f"{rng.randrange(1000)}" for _ in range(500))
            yield {"model": "sql", "prompt": prompt, "max_tokens": 300}

    with clients(url, 6, bodies()) as statuses:
        time.sleep(LOAD_S)
    return statuses


def mixes(url: str) -> list[int]:
    """Three clients with mixes of two out of three adapters, while the slots hold only two."""
    names = ("cron", "dates", "sql")

    def bodies() -> Iterator[Body]:
        number = 0
        while True:
            number += 1
            mix = [{"name": names[(number + offset) % 3], "weight": 0.5} for offset in range(2)]
            yield {"model": "auto", "prompt": "the user", "max_tokens": 100, "dlp": {"adapters": mix}}

    with clients(url, 3, bodies()) as statuses:
        time.sleep(LOAD_S)
    return statuses


def serve_config(work: Path, seen: Path) -> dict[str, Any]:
    """Settings whose backbone scales by a `Recorder` that writes to `seen`."""
    config = application_config(work)
    application = config["applications"][0]
    application["args"]["engine"] |= ENGINE
    application["args"]["routing"] |= ROUTING
    policy = {
        "policy_function": "benchmarks.autoscaling:Recorder",
        "policy_kwargs": {"path": str(seen), "tokens": 0.7, "adapters": 0.9},
    }
    for deployment in application["deployments"]:
        if deployment["name"] == "FusedBackbone":
            deployment["autoscaling_config"] |= SCALING | {"policy": policy}
            deployment |= {"max_ongoing_requests": QUEUE + 1, "max_queued_requests": QUEUE}
    return config


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine(), "scaling": SCALING, "traces": {}}
    with TemporaryDirectory(prefix="dlp-autoscaling-") as temporary:
        work = Path(temporary)
        path = work / "seen.jsonl"
        write_bank(work)
        publish(open_store(str(work / "store")), work / "bank")
        with LocalApp(serve_config(work, path), bank=str(work / "store"), base_model=work / BASE) as app:
            app.wait_until_ready()
            for kind in (steady, bursts, long_prompts, mixes):
                started = time.time()
                statuses = kind(app.url)
                time.sleep(SILENCE_S)
                samples = [json.loads(line) for line in path.read_text().splitlines()]
                rows = [
                    {key: round(value, 3) for key, value in row.items()} | {"time": round(row["time"] - started)}
                    for row in samples
                    if row["time"] >= started
                ]
                answers = {status: statuses.count(status) for status in sorted(set(statuses))}
                result["traces"][kind.__name__] = {"answers": answers, "seen": rows}
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
