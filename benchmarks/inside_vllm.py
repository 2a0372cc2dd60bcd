"""What adapters cost inside vLLM: how many are resident, and how many layers they change.

    .venv/bin/python -m benchmarks.inside_vllm MODEL_DIR --vllm-python PYTHON [--dtype float32] [--quick]

The requests of benchmarks/throughput.py, by engines in processes of their own that take turns:

    plain         vLLM as it is, without LoRA
    8             our engine inside vLLM, mixes of 2 of 8 adapters on q and v at rank 8
    beside 100    the same mixes, with 100 adapters resident
    all linear    mixes of 2 of 8 adapters on all linear layers at rank 16

`cpu_ms_per_token` is the CPU time of all of an engine's processes, `over_plain` its ratio to vLLM's.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import typer
from transformers import AutoConfig

from benchmarks.measure.engines import Engine, Side
from benchmarks.measure.harness import median_ratio, model_folder, report, run, spread
from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS
from benchmarks.measure.targets import Target, target_rows
from benchmarks.measure.worker import Worker
from benchmarks.throughput import PROMPT, SEQUENCES, TOKENS, Turns, measure
from dlp_core.fusion.layers import read_shapes

PLAIN, FEW, MANY, WIDE = Side("plain", 0), Side("8", 2), Side("beside 100", 2), Side("all linear", 2)
RESIDENT_BOUND = 1.03


class Bank(NamedTuple):
    """Adapters that an engine holds."""

    adapters: int
    targets: str
    rank: int


BANKS = {FEW: Bank(8, "q,v", 8), MANY: Bank(100, "q,v", 8), WIDE: Bank(8, "all-linear", 16)}


def start(python: Path, model: Path, dtype: str, scratch: Path, running: ExitStack) -> dict[Side, Engine]:
    """Start an engine for each side. Raises WorkerFailed."""

    def worker(side: Side, *arguments: str | Path) -> Engine:
        print(f"loading {side.engine}", file=sys.stderr)
        log = scratch / f"{side.engine}.log"
        engine = Worker([str(python), "-m", *map(str, arguments)], log)
        running.callback(engine.close)
        return engine

    engines: dict[Side, Engine] = {PLAIN: worker(PLAIN, "benchmarks.peers.vllm", dtype, model)}
    shapes = read_shapes(model)
    for side, bank in BANKS.items():
        folder = scratch / side.engine
        for number in range(bank.adapters):
            write_adapter(folder / f"a{number}", shapes, targets=TARGETS[bank.targets], rank=bank.rank, seed=number)
        engines[side] = worker(side, "benchmarks.measure.engine_worker", "vllm", dtype, model, folder)
    return engines


def rows(turns_by_side: dict[Side, Turns], count: int) -> list[dict[str, Any]]:
    plain = turns_by_side[PLAIN].cpu_ms
    return [
        {
            "sequences": count,
            "side": side.engine,
            "tokens_per_s": round(median(turns.rates), 1),
            "spread": round(spread(turns.rates), 3),
            "cpu_ms_per_token": round(median(turns.cpu_ms), 3),
            "over_plain": round(median_ratio(turns.cpu_ms, plain), 3),
        }
        for side, turns in turns_by_side.items()
    ]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a Llama model.", callback=model_folder)],
    *,
    vllm_python: Annotated[Path, typer.Option(envvar="VLLM_PYTHON", help="Python of an environment with vLLM.")],
    dtype: Annotated[str, typer.Option(help="Precision of all engines.")] = "bfloat16",
    quick: Annotated[bool, typer.Option(help="One round.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 3,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    with TemporaryDirectory() as scratch, ExitStack() as running:
        engines = start(vllm_python, model, dtype, Path(scratch), running)
        versions = dict(engines[PLAIN].versions)
        results = {count: measure(engines, count, 1 if quick else rounds, vocabulary) for count in SEQUENCES}
    targets = [
        Target(
            f"CPU a token inside vLLM, 100 adapters resident over 8, {count} sequence{'s' * (count > 1)}",
            median_ratio(turns[MANY].cpu_ms, turns[FEW].cpu_ms),
            RESIDENT_BOUND,
        )
        for count, turns in results.items()
    ]
    report(
        "inside vllm",
        [row for count, turns in results.items() for row in rows(turns, count)],
        out=out,
        model=model.name,
        dtype=dtype,
        prompt_tokens=PROMPT,
        new_tokens=TOKENS,
        engine=versions,
        targets=target_rows(targets),
    )


if __name__ == "__main__":
    run(main)
