"""Adapter loads and load balance on a local cluster: affinity routing against Serve's power of two choices.

    .venv/bin/python -m benchmarks.affinity_cluster [--requests 1500] [--clients 16]

Three backbone replicas with a tiny random model and 24 slots each; a bank of 60 adapters in 20 families; every request
needs a mix of one to three adapters of one family; families follow Zipf's law. Counts come from the metrics that Ray
exports, after a warm-up, next to the simulation of benchmarks/affinity.py. Needs the `train` extra. Prints one JSON
object.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import ray
import typer

from benchmarks.affinity import SMALL, affinity, power_of_two, simulate
from benchmarks.measure.application import application_config
from benchmarks.measure.harness import ROOT, run
from deployments.local.app import LocalApp
from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, write_adapter
from examples.tiny.model import tiny_backbone, tiny_model

EXPORT_S = 25.0  # Ray exports every ten seconds, and its agent scrapes less often
WARM_UP = 200
TOKENS = 12


def published_bank(folder: Path) -> Path:
    """Writes the model to `folder / BASE` and returns a store with the bank of all families."""
    tiny_backbone(folder / BASE)
    names = [f"{family}-{member}" for family in range(SMALL.families) for member in range(SMALL.adapters_per_family)]
    for seed, name in enumerate(names):
        write_adapter(folder / "bank/adapters" / name, tiny_model(), seed)
    (folder / "bank/bank.json").write_text(json.dumps({"base_model": BASE}))
    publish(open_store(str(folder / "store")), folder / "bank")
    return folder / "store"


def serve_config(policy: str, folder: Path) -> dict[str, Any]:
    config = application_config(folder)
    application = config["applications"][0]
    application["args"]["engine"] |= {"slots": SMALL.slots, "max_requests": SMALL.capacity, "cache_tokens": 8192}
    for deployment in application["deployments"]:
        if deployment["name"] == "FusedBackbone":
            deployment["autoscaling_config"] |= {"min_replicas": SMALL.replicas, "max_replicas": SMALL.replicas}
            deployment |= {"max_ongoing_requests": SMALL.capacity + 1, "max_queued_requests": 1000}
            if policy == "power_of_two":
                del deployment["request_router_config"]
    return config


async def send(url: str, count: int, clients: int, seed: int) -> float:
    """Send `count` requests from `clients` concurrent clients; returns the seconds it took."""
    rng = Random(seed)
    weights = list(accumulate(1 / (number + 1) ** SMALL.zipf for number in range(SMALL.families)))
    bodies = []
    for _ in range(count):
        (family,) = rng.choices(range(SMALL.families), cum_weights=weights)
        members = rng.sample(range(SMALL.adapters_per_family), rng.randint(1, 3))
        mix = [{"name": f"{family}-{member}", "weight": round(rng.uniform(0.1, 1.0), 2)} for member in members]
        bodies.append({"model": "auto", "prompt": "the user", "max_tokens": TOKENS, "dlp": {"adapters": mix}})
    queue = iter(bodies)

    async def client(http: httpx.AsyncClient) -> None:
        for body in queue:
            (await http.post(f"{url}/v1/completions", json=body)).raise_for_status()

    started = time.perf_counter()
    async with httpx.AsyncClient(timeout=120) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return time.perf_counter() - started


def counts() -> dict[str, Counter[str]]:
    """Loads and requests per replica, from Ray's exported metrics."""
    time.sleep(EXPORT_S)
    text = httpx.get(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", timeout=30).text
    names = {"loads": "ray_dlp_adapter_loads_total", "requests": "ray_dlp_time_to_first_token_seconds_count"}
    totals: dict[str, Counter[str]] = {kind: Counter() for kind in names}
    for kind, name in names.items():
        for labels, value in re.findall(rf"^{name}\{{(.*?)\}} ([\d.e+]+)$", text, flags=re.MULTILINE):
            replica = re.search(r'replica="([^"]+)"', labels)
            totals[kind][replica[1] if replica else ""] += int(float(value))
    return totals


def measure(policy: str, store: Path, folder: Path, requests: int, clients: int) -> dict[str, Any]:
    with LocalApp(serve_config(policy, folder), bank=str(store), base_model=folder / BASE) as app:
        app.wait_until_ready()
        asyncio.run(send(app.url, WARM_UP, clients, seed=1))
        before = counts()
        seconds = asyncio.run(send(app.url, requests, clients, seed=2))
        after = counts()
    loads = sum((after["loads"] - before["loads"]).values())
    served = after["requests"] - before["requests"]
    return {
        "loads_per_1000": round(1000 * loads / requests, 1),
        "busiest": round(max(served.values()) * SMALL.replicas / sum(served.values()), 2),
        "counted": sum(served.values()),
        "requests_per_s": round(requests / seconds, 1),
    }


def main(
    requests: Annotated[int, typer.Option(min=1)] = 1500,
    clients: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine(), "requests": requests}
    with TemporaryDirectory(prefix="dlp-affinity-") as temporary:
        folder = Path(temporary)
        store = published_bank(folder)
        for choose in (power_of_two, affinity):
            name = choose.__name__
            simulated = simulate(SMALL, choose)
            result[name] = {
                **measure(name, store, folder, requests, clients),
                "simulated_loads_per_1000": round(simulated.loads_per_1000, 1),
                "simulated_busiest": round(simulated.busiest, 2),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
