"""One of our engines as a worker (benchmarks/measure/worker.py): only the library, without Ray and HTTP.

python -m benchmarks.measure.engine_worker transformers|vllm DTYPE MODEL_DIR ADAPTERS_DIR
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from benchmarks.measure.worker import Batch, BatchResult, serve
from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.config import EngineConfig, Kind, VllmConfig
from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import Sampling
from dlp_core.generation.engines import load_engine
from dlp_core.mix import Mix
from dlp_core.residency.sources import FolderSource


def build(kind: Kind, dtype: str, base: Path, adapters: Path) -> Engine:
    """An engine that holds all adapters of a folder. Engine vllm is told what they change, as an operator would tell
    it."""
    folders = {folder.name: folder for folder in sorted(adapters.iterdir())}
    read = [read_adapter(folder, name=name) for name, folder in folders.items()]
    targets = {path.rpartition(".")[2] for adapter in read for path in adapter.modules}
    config = EngineConfig(kind=kind, slots=len(folders), vllm=VllmConfig(targets=tuple(sorted(targets))))
    return load_engine(base, FolderSource(folders), config, dtype=dtype).engine


class Player:
    """An engine on its own event loop, which runs only during a batch. It starts with all `adapters` loaded."""

    def __init__(self, engine: Engine, adapters: Sequence[str]) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._loop = asyncio.Runner()
        self._loop.run(engine.start())
        self._loop.run(engine.preload(adapters))

    def run(self, batch: Batch) -> BatchResult:
        return self._loop.run(self._run(batch))

    async def _run(self, batch: Batch) -> BatchResult:
        started = time.perf_counter()
        requests = zip(batch.prompts, batch.mixes, strict=True)
        tokens = await asyncio.gather(*(self._generate(*request, batch.tokens) for request in requests))
        return BatchResult(time.perf_counter() - started, tokens)

    async def _generate(self, prompt: Sequence[int], mix: Mapping[str, float], tokens: int) -> list[int]:
        sampling = Sampling(max_tokens=tokens, ignore_eos=True)
        events = self._engine.submit(prompt, Mix.of(mix), sampling, request_id=str(next(self._numbers)))
        return [token async for event in events for token in event.token_ids]


def load() -> tuple[Callable[[Batch], BatchResult], Mapping[str, str]]:
    [kind] = [kind for kind in get_args(Kind) if kind == sys.argv[1]]
    model, adapters = map(Path, sys.argv[3:])
    player = Player(build(kind, sys.argv[2], model, adapters), [folder.name for folder in adapters.iterdir()])
    return player.run, {name: version(name) for name in ("torch", "transformers")}


if __name__ == "__main__":
    serve(load)
