"""Does loading adapters slow down running streams? The engine alone, without HTTP.

    OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.load_overlap .demo/SmolLM2-135M-Instruct [--streams 4]
    OMP_NUM_THREADS=2 .venv-vllm/bin/python -m benchmarks.load_overlap .demo/SmolLM2-135M-Instruct --engine vllm

Some streams decode under two demo adapters throughout. In half of the phases, other adapters load from disk one after
another; host memory is too small to cache them. Phases alternate (quiet, loading, loading, quiet, twice). Prints one
JSON object with the times between tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import environment
from dlp_core.engine.config import EngineConfig, Kind, VllmConfig
from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import Sampling
from dlp_core.generation.engines import load_engine
from dlp_core.mix import Mix
from dlp_core.residency.sources import FolderSource

ADAPTERS = Path(__file__).parents[1] / "examples/bank/adapters"
ORDER = ("quiet", "loading", "loading", "quiet") * 2
USED = ("cron", "shell")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What the demo's adapters change."""


class Gaps:
    """Times between the tokens of all streams in seconds, by phase."""

    def __init__(self) -> None:
        self.phase: str | None = None
        self.seconds: dict[str, list[float]] = {"quiet": [], "loading": []}

    def add(self, seconds: float) -> None:
        if self.phase is not None:
            self.seconds[self.phase].append(seconds)


async def stream(engine: Engine, number: int, gaps: Gaps) -> None:
    last: float | None = None
    for turn in range(1000):
        sampling = Sampling(max_tokens=1000, ignore_eos=True)
        mix = Mix.of({USED[number % 2]: 0.7, USED[1 - number % 2]: 0.3})
        async for event in engine.submit(list(range(20, 40 + number)), mix, sampling, request_id=f"{number}-{turn}"):
            now = time.perf_counter()
            if last is not None and len(event.token_ids) == 1:
                gaps.add(now - last)
            last = now


async def measure(kind: Kind, base: Path, streams: int, phase: float, every: float) -> dict[str, Any]:
    loads: list[float] = []
    folders = {folder.name: folder for folder in sorted(ADAPTERS.iterdir())}
    config = EngineConfig(
        kind=kind,
        slots=3,
        max_requests=streams,
        cache_tokens=1100 * streams,
        host_bytes=1,
        vllm=VllmConfig(targets=TARGETS),
    )
    engine = load_engine(
        base,
        FolderSource(folders),
        config,
        dtype="bfloat16",
        on_load=lambda _, tier, seconds: loads.append(seconds) if tier == "device" else None,
    ).engine
    await engine.start()
    gaps = Gaps()
    tasks = [asyncio.create_task(stream(engine, number, gaps)) for number in range(streams)]
    await asyncio.sleep(3.0)
    loads.clear()
    others = [name for name in folders if name not in USED]
    for name in ORDER:
        gaps.phase = name
        end = time.perf_counter() + phase
        while time.perf_counter() < end:
            if name == "loading":
                others.append(others.pop(0))
                await engine.preload(others[:1])
            await asyncio.sleep(every if name == "loading" else 0.1)
    gaps.phase = None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.stop()
    return {
        "benchmark": "load overlap",
        **environment(),
        "engine": kind,
        "streams": streams,
        "loads_per_s": round(len(loads) / (ORDER.count("loading") * phase), 1),
        "load_ms": round(1000 * median(loads), 2),
        **{name: _summary(seconds) for name, seconds in gaps.seconds.items()},
        "p99_ratio": round(_p99(gaps.seconds["loading"]) / _p99(gaps.seconds["quiet"]), 3),
    }


def _p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "tokens": len(seconds),
        "p50_ms": round(1000 * median(seconds), 2),
        "p99_ms": round(1000 * _p99(seconds), 2),
    }


def main(
    base: Annotated[Path, typer.Argument(help="Folder of SmolLM2-135M-Instruct.")],
    *,
    engine: Annotated[Kind, typer.Option(help="What runs the model.")] = "transformers",
    streams: Annotated[int, typer.Option(min=1, max=32)] = 4,
    phase: Annotated[float, typer.Option(min=1.0, help="Seconds of each phase.")] = 8.0,
    every: Annotated[float, typer.Option(min=0.0, help="Seconds between the end of a load and the next.")] = 0.1,
) -> None:
    """Measure times between tokens, with and without adapters being loaded."""
    print(json.dumps(asyncio.run(measure(engine, base, streams, phase, every)), indent=1))


if __name__ == "__main__":
    typer.run(main)
