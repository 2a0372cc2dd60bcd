"""What sampling adds to a token of the engine, next to greedy decoding.

    OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.sampling MODEL_DIR [--dtype float32] [--quick] [--out FILE]

As many requests as `--sequences` decode together under the plain model. Each side picks tokens in another way; the
sides take turns. `ms` is the time between two tokens of a request, from its first to its last; `ratio` is relative to
greedy.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import Timing, abba, comparison_rows, model_folder, report, run
from benchmarks.measure.targets import Target, target_rows
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import Sampling
from dlp_core.generation.engines import load_engine
from dlp_core.mix import EMPTY_MIX
from dlp_core.residency.sources import FolderSource

TOKENS = 24
SIDES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "penalties": {"temperature": 0.8, "top_p": 0.95, "presence_penalty": 0.5, "repetition_penalty": 1.1},
}
BOUND = 1.05


async def one(engine: Engine, name: str, number: int, options: dict[str, Any]) -> float:
    """Seconds between two tokens of one request."""
    sampling = Sampling(TOKENS, ignore_eos=True, seed=number, **options)
    first = last = 0.0
    async for event in engine.submit(list(range(20, 52 + number)), EMPTY_MIX, sampling, request_id=f"{name}{number}"):
        last = time.perf_counter()
        first = first or last
        assert event.token_ids
    return (last - first) / (TOKENS - 1)


async def measure(engine: Engine, sequences: int, rounds: int) -> dict[str, Timing]:
    await engine.start()
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn, name in enumerate(abba(SIDES, rounds + 1)):
        requests = (one(engine, f"{turn}-", number, SIDES[name]) for number in range(sequences))
        seconds[name].append(median(await asyncio.gather(*requests)))
    await engine.stop()
    return {name: Timing(tuple(values[2:])) for name, values in seconds.items()}  # the first round warms up


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    *,
    sequences: Annotated[int, typer.Option(min=1, max=64)] = 16,
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "float32",
    quick: Annotated[bool, typer.Option(help="Fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 6,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    engine = load_engine(model, FolderSource({}), EngineConfig(), dtype=dtype).engine
    timings = asyncio.run(measure(engine, sequences, 2 if quick else rounds))
    targets = [
        Target(f"time per token, {sequences} rows with {name} over greedy", timing.ratio_to(timings["greedy"]), BOUND)
        for name, timing in timings.items()
        if name != "greedy"
    ]
    settings = {"model": model.name, "dtype": dtype, "sequences": sequences, "tokens": TOKENS}
    report("sampling", comparison_rows(timings, "greedy"), out=out, **settings, targets=target_rows(targets))


if __name__ == "__main__":
    run(main)
