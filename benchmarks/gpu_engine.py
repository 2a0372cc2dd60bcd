"""The engine on a GPU: with CUDA graphs and without, plain and under mixes, alone, without Ray and without network.

    python -m benchmarks.gpu_engine [--minutes N] [--layers N] [--small] [--out FILE]
    python -m benchmarks.gpu_engine --smoke      a tiny model and one cell, without a GPU in triton's interpreter

The model of benchmarks/gpu_decode.py, random, in bfloat16, with the engine's cache, scheduler, attention and picks.
Requests decode together after prompts of 32 tokens. In each cell the sides take turns:

    plain, mix    with CUDA graphs; in `mix` every request has another mix of 2 of the resident adapters
    eager         plain, without graphs
    sampled       plain, with temperature and top_p

`ms` is the time of a step by the host's clock. `ideal_ms` is what the bytes of the weights and of the cached tokens
take at the bandwidth of a large copy; the plain engine is to reach 0.8 of it. A cell that fails costs the others
nothing; the exit code is 1 then. Needs what gpu_decode needs, and pydantic. Without a CUDA device: exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from benchmarks.measure.gpu import about, random_llama, write
from benchmarks.measure.timing import abba, host_clock, time_interleaved
from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.attention import triton
from dlp_core.engine import batching, sampling
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.draws import draw_in_torch
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.paged_attention import triton_attention
from dlp_core.engine.request import Sampling
from dlp_core.engine.sizing import cache_bytes_per_token
from dlp_core.fusion.layers import Fusion, Graphs, install
from dlp_core.fusion.triton import TritonOp
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency

TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
SIDES = ("plain", "mix", "eager", "sampled")
REACHED = 0.8


class Cell(NamedTuple):
    targets: str
    rank: int
    resident: int
    sequences: int


def grid(smoke: bool) -> list[Cell]:
    """The ones with targets first: time may run out."""
    if smoke:
        return [Cell("qv", 8, 3, 2)]
    counts = (1, 8, 32)
    return [
        *(Cell("qv", 8, 26, count) for count in counts),
        *(Cell("all", 16, 26, count) for count in counts),
        *(Cell("qv", 8, 100, count) for count in counts),
        Cell("qv", 8, 26, 64),
    ]


class RandomSource:
    """As many adapters as anybody asks for, made when they are loaded."""

    def __init__(self, fusion: Fusion, targets: str, rank: int) -> None:
        self._fusion, self._targets, self._rank = fusion, TARGETS[targets], rank

    def digest(self, name: str) -> str:
        return f"{name} {self._targets} {self._rank}"

    def size(self, name: str) -> int:
        return 1

    def invocation(self, name: str) -> None:
        return None

    def load(self, name: str) -> Adapter:
        rank = self._rank
        modules = {
            path: LoRAWeights(torch.randn(rank, s.d_in) / s.d_in**0.5, torch.randn(s.d_out, rank) / rank**0.5, 2.0)
            for path, s in self._fusion.shapes.items()
            if path.rpartition(".")[2] in self._targets
        }
        return Adapter(name, None, modules)


class Bench:
    """One model for all cells; each has engines of its own, which share it."""

    def __init__(self, device: torch.device, layers: int, *, smoke: bool, small: bool) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16  # what the interpreter multiplies
        self.model = random_llama(device, layers, small=small, dtype=self.dtype)
        self.model.generation_config.eos_token_id = None
        self.prompt, self.tokens = (3, 3) if smoke else (32, 64)
        self.order = SIDES if smoke else tuple(abba(SIDES, 3))
        self.slots = 4 if smoke else 104
        graphs = None if smoke else Graphs(64, self.slots)
        self.fusion = install(self.model, TritonOp(device, self.dtype) if smoke else None, graphs=graphs)
        self.bandwidth = self._bandwidth()

    def config(self, graphs: bool) -> EngineConfig:
        return EngineConfig(
            slots=self.slots,
            max_requests=64,
            cache_tokens=16_384,
            batch_tokens=2048,
            cuda_graphs=graphs,
            host_bytes=2**33,
        )

    async def measure(self, cell: Cell) -> dict[str, Any]:
        residency = Residency(RandomSource(self.fusion, cell.targets, cell.rank), self.fusion, self.slots)
        ms: dict[str, list[float]] = {side: [] for side in SIDES}
        captured = 0
        for side in self.order:
            engine = FusedEngine(self.model, self.fusion, residency, self.config(graphs=side != "eager"))
            await engine.start()
            captured = max(captured, engine.stats().cuda_graphs)
            await residency.preload([f"a{n}" for n in range(cell.resident)])
            if self.device.type == "cuda":
                await self.decode(engine, side, cell)  # compiles
            ms[side].append(await self.decode(engine, side, cell))
            await asyncio.to_thread(engine._batching.stop, block=True, hard_stop=True)  # the next has the same adapters
        residency.close()
        medians = {side: round(median(values), 3) for side, values in ms.items()}
        weights = sum(p.nbytes for name, p in self.model.named_parameters() if "embed_tokens" not in name)
        cached = (
            cell.sequences
            * (self.prompt + self.tokens // 2)
            * cache_bytes_per_token(self.model.config.get_text_config(), self.model.dtype.itemsize)
        )
        ideal = (weights + cached) / self.bandwidth * 1000
        return {
            **cell._asdict(),
            "ms": medians,
            "over_plain": {side: round(medians[side] / medians["plain"], 4) for side in SIDES if side != "plain"},
            "ideal_ms": round(ideal, 3),
            "reached": round(ideal / medians["plain"], 3),
            "met": ideal / medians["plain"] >= REACHED,
            "graphs": captured,
        }

    async def decode(self, engine: FusedEngine, side: str, cell: Cell) -> float:
        """Milliseconds of a step in which all requests decode."""
        options = {"temperature": 0.8, "top_p": 0.95} if side == "sampled" else {}
        steps: list[float] = []

        async def one(number: int) -> None:
            first, second = (2 * number) % cell.resident, (2 * number + 1) % cell.resident
            mix = Mix.of({f"a{first}": 0.6, f"a{second}": 0.4}) if side == "mix" else EMPTY_MIX
            settings = Sampling(self.tokens, ignore_eos=True, seed=number, **options)
            ids = [3 + (7 * number + n) % 200 for n in range(self.prompt)]
            began, said = 0.0, 0
            async for event in engine.submit(ids, mix, settings, request_id=f"{side}{number}"):
                said += len(event.token_ids)
                began = began or time.perf_counter()
            steps.append((time.perf_counter() - began) / max(1, said - 1))

        await asyncio.gather(*(one(number) for number in range(cell.sequences)))
        return 1000 * median(steps)

    def _bandwidth(self) -> float:
        """Bytes a second that a large copy reads and writes."""
        source = torch.zeros(2**30 if self.device.type == "cuda" else 2**22, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        timing = time_interleaved({"copy": copy}, rounds=5, calls=4, clock=host_clock)["copy"]
        return 2 * source.nbytes / median(timing.seconds)


def _measure(bench: Bench, cell: Cell, seconds: float) -> dict[str, Any]:
    try:
        result = asyncio.run(asyncio.wait_for(bench.measure(cell), seconds))
    except Exception as error:
        traceback.print_exc()
        return {**cell._asdict(), "error": f"{type(error).__name__}: {error}"}
    print(
        f"{cell.targets:>3} r={cell.rank:<3} N={cell.resident:<4} seqs={cell.sequences:<3} "
        f"plain {result['ms']['plain']:.2f} ms, over it: {result['over_plain']}, "
        f"{result['reached']:.2f} of what bytes allow, {result['graphs']} graphs",
        file=sys.stderr,
        flush=True,
    )
    return result


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine on a GPU.")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and one cell, anywhere; not a measurement")
    parser.add_argument("--minutes", type=float, default=3, help="when the last cell may begin; default 3")
    parser.add_argument("--small", action="store_true", help="a tiny width")
    parser.add_argument("--layers", type=int, help="default 32, with --smoke 2")
    parser.add_argument("--out", type=Path, help="where the JSON goes instead of standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    args = _parse(arguments)
    if not torch.cuda.is_available() and not args.smoke:
        print("no CUDA device here; --smoke runs a tiny model without one", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        batching.attention_op, sampling.draw = triton_attention, draw_in_torch
        triton._PROGRAMS = 8  # the interpreter runs one after the other
    layers = args.layers or (2 if args.smoke else 32)
    bench = Bench(device, layers, smoke=args.smoke, small=args.small or args.smoke)
    cells, result = grid(args.smoke), list[dict[str, Any]]()
    report = about(device) | {"smoke": args.smoke, "layers": layers, "planned": len(cells), "cells": result}
    report["copy_GBps"] = round(bench.bandwidth / 1e9, 1)
    for cell in cells:
        left = 60 * args.minutes - (time.monotonic() - began)
        if left <= 0:
            print(f"{args.minutes:g} minutes are over: {len(result)} of {len(cells)} cells", file=sys.stderr)
            break
        result.append(_measure(bench, cell, max(left, 60)))
        if args.out:
            write(report, args.out)
    if not args.out:
        print(json.dumps(report, indent=1))
    return int(any("error" in cell for cell in result))


if __name__ == "__main__":
    sys.exit(main())
