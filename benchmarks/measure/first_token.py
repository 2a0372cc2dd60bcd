"""From a new process to the engine's first token, phase by phase, as in the constructor of a backbone replica.

    .venv/bin/python -m benchmarks.measure.first_token MODEL_DIR BANK_URI

Prints one JSON object with the seconds of each phase. The first token comes from the base model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from deployments.args import AppArgs
from deployments.replicas.process import lasting_imports
from dlp_core.bank.source import BankSource
from dlp_core.mix import EMPTY_MIX
from dlp_core.store.opening import open_store

MODULES = (
    "torch",
    "transformers.generation.continuous_batching",
    "dlp_core.engine.engine",
    "dlp_core.engine.loading",
)


async def phases(model: str, bank: str) -> dict[str, float]:
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def end_phase(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[phase], last = now - last, now

    with lasting_imports():
        for name in MODULES:
            module = import_module(name)
            end_phase(f"import {name}")
    args = AppArgs(bank=bank, base_model=model)
    source = BankSource(open_store(bank), args.cache.open())
    loaded = module.load(Path(model), source, args.engine, dtype=args.dtype, device="cpu", threads=args.threads)
    engine, codec = loaded.engine, loaded.codec
    end_phase("model and tokenizer")
    await engine.start()
    end_phase("engine")
    try:
        ids = codec.encode("every weekday at 8:30 in the morning").ids
        sampling = import_module("dlp_core.engine.request").Sampling(max_tokens=2)
        async with aclosing(engine.submit(ids, EMPTY_MIX, sampling, request_id="first")) as events:
            await anext(events)
        end_phase("first token")
    finally:
        await engine.stop()
    return seconds


def main(
    model: Annotated[str, typer.Argument(help="Folder of a model.")],
    bank: Annotated[str, typer.Argument(help="A bank published for it.")],
) -> None:
    logging.disable(logging.WARNING)  # metrics without Ray
    print(json.dumps(asyncio.run(phases(model, bank))))


if __name__ == "__main__":
    typer.run(main)
