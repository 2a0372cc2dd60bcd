"""Tokens per second of whole engines on the same requests: both of ours, vLLM and llama.cpp.

    .venv/bin/python -m benchmarks.throughput MODEL_DIR [--vllm-python PYTHON] [--llama-server BINARY]
        [--dtype float32] [--quick]

1, 4 and 16 requests arrive together and generate 32 tokens each from prompts of 32 tokens, greedily, with 8 adapters
on q and v at rank 8; in bfloat16, which CPUs without instructions for it compute very slowly (`--dtype float32`):

    plain    no adapter; vLLM runs without LoRA altogether
    k=1      one adapter per request, all that vLLM's own LoRA supports
    k=2, 3   a different mix for each request; llama.cpp takes the scales in the request and then does not batch

Every engine is a process that has loaded once (measure/worker.py) and is idle during the others' turns. Prompts are new
in every turn and the same for all sides of a turn, so no cache helps. `cpu_ms_per_token` is the CPU time of all of an
engine's processes; on a shared machine it wanders less than time does. `over_plain` compares an engine with itself.
`same_first` is the share of requests whose first token matches ours under the same mix; in bfloat16 not quite all do.

vLLM needs its own environment, which `make vllm` builds: .venv-vllm/bin/python. `llama-server`
is built from llama.cpp's sources. A peer that is not given is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from transformers import AutoConfig

from benchmarks.measure.engines import ADAPTERS, INSIDE, Engine, Side, start_engines
from benchmarks.measure.harness import abba, median_ratio, model_folder, report, run, spread
from benchmarks.measure.targets import Target, target_rows
from benchmarks.measure.worker import Batch

SEQUENCES = (1, 4, 16)
PROMPT, TOKENS = 32, 32


@dataclass(frozen=True, slots=True)
class Turns:
    """One side at one number of requests: tokens per second and CPU milliseconds a token of each round, and the first
    tokens of all requests."""

    rates: Sequence[float]
    cpu_ms: Sequence[float]
    first: Sequence[int]


def mixes(count: int, k: int) -> list[dict[str, float]]:
    """A mix of k adapters for each request, distinct as far as there are enough; the empty mix if k is 0."""
    choices = list(combinations(ADAPTERS, k))
    Random(k).shuffle(choices)
    return [dict.fromkeys(choices[i % len(choices)], 1 / max(k, 1)) for i in range(count)]


def prompts(count: int, turn: int, vocabulary: int) -> list[list[int]]:
    random = Random(f"{count} {turn}")
    return [[random.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(count)]


def measure(engines: Mapping[Side, Engine], count: int, rounds: int, vocabulary: int) -> dict[Side, Turns]:
    """Measure all sides in turn, with `count` requests."""
    rates: dict[Side, list[float]] = {side: [] for side in engines}
    cpu_ms: dict[Side, list[float]] = {side: [] for side in engines}
    first: dict[Side, list[int]] = {side: [] for side in engines}
    for side, engine in engines.items():  # warm up, so that no side pays for loading adapters
        engine.run(Batch(prompts(count, -1, vocabulary), mixes(count, side.k), 4))
    for number in range(rounds):
        seconds, cpu = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0.0)
        for position, side in enumerate(abba(engines)):
            turn = 2 * number + position // len(engines)
            result = engines[side].run(Batch(prompts(count, turn, vocabulary), mixes(count, side.k), TOKENS))
            assert all(len(tokens) == TOKENS for tokens in result.tokens)
            seconds[side] += result.seconds
            cpu[side] += result.cpu_seconds
            first[side] += [tokens[0] for tokens in result.tokens]
        tokens = 2 * count * TOKENS  # of two turns
        for side in engines:
            rates[side].append(tokens / seconds[side])
            cpu_ms[side].append(1000 * cpu[side] / tokens)
    return {side: Turns(rates[side], cpu_ms[side], first[side]) for side in engines}


def rows(turns_by_side: Mapping[Side, Turns], count: int) -> Iterator[dict[str, Any]]:
    for side, turns in turns_by_side.items():
        our_first = turns_by_side[Side("ours", side.k)].first
        yield {
            "sequences": count,
            "engine": side.engine,
            "side": side.name,
            "tokens_per_s": round(median(turns.rates), 1),
            "spread": round(spread(turns.rates), 3),
            "cpu_ms_per_token": round(median(turns.cpu_ms), 3),
            "over_plain": round(median_ratio(turns.rates, turns_by_side[Side(side.engine, 0)].rates), 3),
            "same_first": round(sum(map(int.__eq__, turns.first, our_first)) / len(our_first), 2),
        }


def targets_of(turns_by_side: Mapping[Side, Turns], count: int) -> list[Target]:
    many = f"{count} sequence{'s' * (count > 1)}"

    def rate(what: str, side: Side, base: Side, bound: float) -> list[Target]:
        if not {side, base} <= turns_by_side.keys():
            return []
        ratio = median_ratio(turns_by_side[side].rates, turns_by_side[base].rates)
        return [Target(f"{what}, {many}", ratio, bound, at_least=True)]

    found = rate("tokens/s, k=2 over vLLM's one adapter", Side("ours", 2), Side("vllm", 1), 1.3)
    inside, plain = Side(INSIDE, 2), Side("vllm", 0)
    if {inside, plain} <= turns_by_side.keys():
        cpu = median_ratio(turns_by_side[plain].cpu_ms, turns_by_side[inside].cpu_ms)
        found.append(Target(f"CPU a token, vLLM's plain over k=2 inside vLLM, {many}", cpu, 0.93, at_least=True))
    if count == max(SEQUENCES):
        found += rate("tokens/s, k=2 inside vLLM over vLLM's one adapter", inside, Side("vllm", 1), 2.5)
        found += rate("tokens/s, k=2 inside vLLM over transformers", inside, Side("ours", 2), 2.0)
    return found


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a Llama model.", callback=model_folder)],
    *,
    vllm_python: Annotated[
        Path | None, typer.Option(envvar="VLLM_PYTHON", help="Python of an environment with vLLM.")
    ] = None,
    llama_server: Annotated[Path | None, typer.Option(envvar="LLAMA_SERVER", help="llama.cpp's llama-server.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of all engines.")] = "bfloat16",
    quick: Annotated[bool, typer.Option(help="One round.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 2,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    with (
        TemporaryDirectory() as scratch,
        start_engines(model, Path(scratch), dtype=dtype, vllm_python=vllm_python, llama_server=llama_server) as engines,
    ):
        results = {count: measure(engines, count, 1 if quick else rounds, vocabulary) for count in SEQUENCES}
    versions = {side.engine: dict(engine.versions) for side, engine in engines.items()}
    targets = target_rows([target for count, turns in results.items() for target in targets_of(turns, count)])
    table = [row for count, turns in results.items() for row in rows(turns, count)]
    settings = {"prompt_tokens": PROMPT, "new_tokens": TOKENS, "adapters": "q,v at rank 8", "engines": versions}
    report("throughput", table, out=out, model=model.name, dtype=dtype, **settings, targets=targets)


if __name__ == "__main__":
    run(main)
