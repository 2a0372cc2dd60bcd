"""The engine under open-loop load, called directly.

    .venv/bin/python -m benchmarks.engine MODEL_DIR [--seconds 5] [--quick] [--out FILE]

First, 16 clients send one request after another (a closed loop, `closed`), which measures the machine's capacity. Then
requests arrive in an open loop, at `load` times the request rate of the plain model in the closed loop. Each cell is
one trace of requests (benchmarks/measure/traffic.py), played to every side in turn:

    plain             no adapter
    one               one of 8 adapters for each request
    k=3               a mix of 3 of the 8
    k=3 of 100        a mix of 3 of 100 adapters, of which 32 have a slot: the others are loaded from disk on demand

`ttft` is the time to the first token from when a request was due, `itl` the time between pieces of an answer, nearly
always of one token; both in milliseconds, as percentiles over all requests of a side. `goodput` is the rate of requests
that met the objective, `met` their share; rates are medians over the runs. `ratio` is the median itl over plain's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.measure.harness import abba, median_ratio, model_folder, report, run, spread
from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.service import Answer, Objective, percentiles, summarise
from benchmarks.measure.synthetic import TARGETS, load_model
from benchmarks.measure.traffic import Lengths, Request, trace
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource

STREAMS = 16
SLOTS, FEW, MANY = 32, 8, 100
ZIPF = 1.0
WEIGHTS = (0.5, 0.3, 0.2)
PROMPT, ANSWER = Lengths(48, 0.6, 8, 192), Lengths(16, 0.5, 4, 48)
OBJECTIVE = Objective(first_token=0.5, per_token=0.1)
SEED = 1


class Side(NamedTuple):
    name: str
    k: int
    adapters: int

    def mix(self, request: Request) -> Mix:
        if not self.k:
            return EMPTY_MIX
        weights = WEIGHTS if self.k == len(WEIGHTS) else (1.0,) * self.k
        chosen = request.adapters(self.k, self.adapters, ZIPF)
        return Mix.of({f"a{number}": weight for number, weight in zip(chosen, weights, strict=True)})


SIDES = (Side("plain", 0, 0), Side("one", 1, FEW), Side("k=3", 3, FEW), Side(f"k=3 of {MANY}", 3, MANY))


class Cell(NamedTuple):
    """How requests arrive. `cv` is the coefficient of variation of the inter-arrival times, `load` their rate relative
    to the plain model's in the closed loop."""

    process: str
    cv: float
    load: float


CELLS = (Cell("Poisson", 1.0, 0.5), Cell("Poisson", 1.0, 0.8), Cell("Gamma", 2.0, 0.5))


@dataclass(frozen=True, slots=True)
class Run:
    answers: list[Answer]
    loads: int


class Player:
    """Plays requests to an engine. No prompt repeats, so runs share no cache."""

    def __init__(self, engine: FusedEngine, loads: Callable[[], int]) -> None:
        self._engine = engine
        self._loads = loads
        self._numbers = count()

    async def play(self, side: Side, requests: Sequence[Request]) -> Run:
        """Open loop: send every request when it is due."""

        async def send(request: Request, started: float) -> Answer:
            await asyncio.sleep(started + request.at - time.perf_counter())
            return await self._answer(side, request, started, due=request.at)

        before = await self._preload(side)
        started = time.perf_counter()
        answers = await asyncio.gather(*(send(request, started) for request in requests))
        return Run(list(answers), self._loads() - before)

    async def saturate(self, side: Side, requests: Sequence[Request], seconds: float) -> Run:
        """Closed loop: STREAMS clients, each sending its next request once the last is answered. Answers that end after
        `seconds` do not count, because fewer clients are running by then."""
        before = await self._preload(side)
        answers: list[Answer] = []
        queue = cycle(requests)
        started = time.perf_counter()

        async def client() -> None:
            while (now := time.perf_counter() - started) < seconds:
                answers.append(await self._answer(side, next(queue), started, due=now))

        await asyncio.gather(*(client() for _ in range(STREAMS)))
        return Run([answer for answer in answers if answer.pieces[-1] <= seconds], self._loads() - before)

    async def _preload(self, side: Side) -> int:
        """Load the side's most popular adapters into the slots; returns the number of loads so far."""
        await self._engine.preload([f"a{number}" for number in range(min(side.adapters, SLOTS))])
        return self._loads()

    async def _answer(self, side: Side, request: Request, started: float, *, due: float) -> Answer:
        number = next(self._numbers)
        prompt = np.random.default_rng(number).integers(3, self._engine.vocabulary, request.prompt_tokens).tolist()
        sampling = Sampling(max_tokens=request.answer_tokens, ignore_eos=True)
        events = self._engine.submit(prompt, side.mix(request), sampling, request_id=str(number))
        pieces = [time.perf_counter() - started async for event in events if event.token_ids]
        return Answer(due, tuple(pieces), request.answer_tokens)


@asynccontextmanager
async def playing(base: Path, work: Path) -> AsyncIterator[Player]:
    model = load_model(base)
    fusion = install(model)
    folders = {f"a{number}": work / f"a{number}" for number in range(MANY)}
    for number, folder in enumerate(folders.values()):
        write_adapter(folder, fusion.shapes, targets=TARGETS["q,v"], rank=8, seed=number)
    loaded: list[str] = []

    def on_load(name: str, tier: str, _: float) -> None:
        if tier == "device":
            loaded.append(name)

    residency = Residency(FolderSource(folders), fusion, SLOTS, host_bytes=1, on_load=on_load)
    engine = FusedEngine(model, fusion, residency, EngineConfig(slots=SLOTS, max_requests=1024))
    await engine.start()
    try:
        yield Player(engine, lambda: len(loaded))
    finally:
        await engine.stop()


async def measure(base: Path, cells: Sequence[Cell], seconds: float, rounds: int) -> list[dict[str, Any]]:
    with TemporaryDirectory(prefix="dlp-engine-") as temporary:
        async with playing(base, Path(temporary)) as player:
            closed = trace(100.0, 10.0, cv=1.0, prompt=PROMPT, answer=ANSWER, seed=SEED)
            await player.saturate(SIDES[-1], closed, 1.0)  # warm-up
            runs: dict[str, list[Run]] = {side.name: [] for side in SIDES}
            for side in abba(SIDES, rounds):
                runs[side.name].append(await player.saturate(side, closed, seconds))
            capacity = median(summarise(closed_run.answers, OBJECTIVE).requests_per_s for closed_run in runs["plain"])
            table = rows({"process": "closed", "load": None, "rate": None}, runs)
            for cell in cells:
                rate = cell.load * capacity
                requests = trace(rate, seconds, cv=cell.cv, prompt=PROMPT, answer=ANSWER, seed=SEED)
                runs = {side.name: [] for side in SIDES}
                for side in abba(SIDES, rounds):
                    runs[side.name].append(await player.play(side, requests))
                table += rows({"process": cell.process, "load": cell.load, "rate": round(rate, 2)}, runs)
    return table


def rows(cell: dict[str, Any], runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    summaries = {name: [summarise(run.answers, OBJECTIVE) for run in side_runs] for name, side_runs in runs.items()}
    gaps = {name: [summary.gap_p50 for summary in side] for name, side in summaries.items()}
    result = []
    for name, side_runs in runs.items():
        answers = [answer for run in side_runs for answer in run.answers]
        first = percentiles([answer.first_token for answer in answers])
        between = percentiles([gap for answer in answers for gap in answer.gaps])
        result.append(
            {
                **cell,
                "side": name,
                "requests": len(answers),
                "ttft_p50": _ms(first[0]),
                "ttft_p99": _ms(first[1]),
                "itl_p50": _ms(between[0]),
                "itl_p99": _ms(between[1]),
                "tokens_per_s": round(median(summary.tokens_per_s for summary in summaries[name]), 1),
                "goodput": round(median(summary.goodput for summary in summaries[name]), 2),
                "met": round(median(summary.met_share for summary in summaries[name]), 3),
                "loads": sum(run.loads for run in side_runs),
                "spread": round(spread(gaps[name]), 3),
                "ratio": round(median_ratio(gaps[name], gaps["plain"]), 3),
            }
        )
    return result


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each run.")] = 5.0,
    quick: Annotated[bool, typer.Option(help="One cell, runs of 3 s.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    cells, length = (CELLS[:1], 3.0) if quick else (CELLS, seconds)
    result = asyncio.run(measure(model, cells, length, rounds=1))
    report(
        "engine",
        result,
        out=out,
        model=model.name,
        dtype="bfloat16",
        seconds=length,
        streams=STREAMS,
        slots=SLOTS,
        zipf=ZIPF,
        cv={cell.process: cell.cv for cell in cells},
        prompt_tokens=PROMPT._asdict(),
        answer_tokens=ANSWER._asdict(),
        objective=OBJECTIVE._asdict(),
        seed=SEED,
    )


if __name__ == "__main__":
    run(main)
