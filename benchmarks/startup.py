"""Startup times: imports, commands, the router, the engine, and `dlp serve`.

    .venv/bin/python -m benchmarks.startup MODEL_DIR [--quick] [--out FILE]

Four kinds of rows in milliseconds, as medians over the runs:

    process   a Python process from start to end, in turn; `ratio` is relative to an empty one
    router    loading the demo bank's router in a running process
    engine    a backbone replica without Ray, phase by phase: benchmarks/measure/first_token.py
    serve     `dlp serve` from the start of its process to the first streamed token, phase by phase according to Serve's
              own logs; `at_ms` is the end of a phase
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import typer
import yaml

from benchmarks.measure.harness import ROOT, Timing, comparison_rows, report, time_interleaved
from deployments.local.app import load_config
from dlp_core.bank.publish import publish
from dlp_core.ports import free_port
from dlp_core.router import Router
from dlp_core.store.opening import open_store

TEXT = "every weekday at 8:30 in the morning, as cron"
ROUTER = ROOT / "examples/bank/router"
DLP = (sys.executable, "-m", "deployments.cli.main")
PROCESSES: dict[str, Sequence[str]] = {
    "python": (sys.executable, "-c", "pass"),
    "import dlp_core": (sys.executable, "-c", "import dlp_core"),
    "import dlp_core.mix": (sys.executable, "-c", "import dlp_core.mix"),
    "dlp --help": (*DLP, "--help"),
    "dlp route TEXT": (*DLP, "route", TEXT, "--router", str(ROUTER)),
}
LOGS = Path("/tmp/ray/session_latest/logs/serve")
PHASES = {
    "ray, serve's controller": ("controller", "Controller starting"),
    "http proxy": ("controller", "Deploying new app"),
    "application imported": ("controller", "Imported and built app"),
    "backbone's process": ("replica_dlp_FusedBackbone", "Started initializing replica"),
    "backbone constructed": ("replica_dlp_FusedBackbone", "Finished initializing replica"),
}
"""For each phase, in order: the Serve log and the text of the line that mark its end."""


def run(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def engine(base: Path, bank: str) -> dict[str, float]:
    """Seconds of each phase of benchmarks/measure/first_token.py."""
    command = [sys.executable, "-m", "benchmarks.measure.first_token", str(base), bank]
    completed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return dict(json.loads(completed.stdout))


def serve(base: Path, bank: str, config: Path) -> dict[str, float]:
    """Seconds of each phase of `dlp serve`. Starts its own Ray cluster and stops it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--bank", bank, "--base-model", str(base), "--port", str(port), "--config", str(config)]
    started = time.time()
    server = subprocess.Popen([*DLP, "serve", *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _healthy(url):
            if server.poll() is not None:
                raise RuntimeError(f"dlp serve exited with {server.returncode}")
            time.sleep(0.02)
        ends = {"": started, **{name: _logged_at(*line) for name, line in PHASES.items()}, "ready": time.time()}
        _first_token(url)
        ends["first token, routed"] = time.time()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    return {name: ends[name] - ends[before] for before, name in pairwise(ends)}


def _healthy(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=200).status_code == 200
    return False


def _first_token(url: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=200) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return
    raise RuntimeError("the stream had no token")


def _logged_at(name: str, text: str) -> float:
    """Unix time at which a line containing `text` was written to the log `name`."""
    for path in sorted(LOGS.glob(f"{name}_*.log")):
        for line in path.read_text().splitlines():
            if text not in line:
                continue
            stamp = json.loads(line)["asctime"] if line.startswith("{") else " ".join(line.split()[1:3])
            return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    raise RuntimeError(f"no {name} log in {LOGS} contains {text!r}")


def phases(kind: str, measure: Callable[[], dict[str, float]], runs: int) -> list[dict[str, Any]]:
    """A row for each phase, with its duration and its end."""
    samples = [measure() for _ in range(runs)]
    rows, end_ms = [], 0.0
    for name in samples[0]:
        timing = Timing(tuple(sample[name] for sample in samples))
        end_ms += timing.ms
        rows.append({"kind": kind, "side": name, "ms": round(timing.ms, 1), "at_ms": round(end_ms, 1)})
    totals = [sum(sample.values()) for sample in samples]
    return [*rows, {"kind": kind, "side": "all", "ms": round(1000 * median(totals), 1)}]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of SmolLM2-135M-Instruct, which the demo bank is for.")],
    quick: Annotated[bool, typer.Option(help="One run of each.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    sides: dict[str, Callable[[], object]] = {name: partial(run, command) for name, command in PROCESSES.items()}
    timings = time_interleaved(sides, rounds=1 if quick else 3, calls=1)
    loads = time_interleaved({"Router.load": partial(Router.load, ROUTER)}, rounds=3, calls=3)
    rows = [{"kind": "process", **row} for row in comparison_rows(timings, "python")]
    rows += [{"kind": "router", **row} for row in comparison_rows(loads, "Router.load")]
    with TemporaryDirectory(prefix="dlp-startup-") as temporary:
        work = Path(temporary)
        bank = str(work / "store")
        publish(open_store(bank), ROOT / "examples/bank")
        settings = load_config(ROOT / "serve_config.yaml")
        settings["applications"][0]["args"]["cache"] = {"path": str(work / "cache")}
        config = work / "serve_config.yaml"
        config.write_text(yaml.safe_dump(settings))
        rows += phases("engine", partial(engine, model.resolve(), bank), 1 if quick else 2)
        rows += phases("serve", partial(serve, model.resolve(), bank, config), 1 if quick else 2)
    report("startup", rows, out=out, model=model.name, dtype="bfloat16")


if __name__ == "__main__":
    typer.run(main)
