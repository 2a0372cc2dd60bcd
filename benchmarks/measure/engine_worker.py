"""Our engine as a worker (benchmarks/measure/worker.py): only the library, without Ray and HTTP.

python -m benchmarks.measure.engine_worker MODEL_DIR ADAPTERS_DIR
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure.synthetic import load_model
from benchmarks.measure.worker import Batch, BatchResult, serve
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling
from dlp_core.fusion.layers import install
from dlp_core.mix import Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource


class Engine:
    """The engine on its own event loop, which runs only during a batch."""

    def __init__(self, base: Path, adapters: Path) -> None:
        folders = {folder.name: folder for folder in sorted(adapters.iterdir())}
        model = load_model(base)
        fusion = install(model)
        config = EngineConfig(slots=len(folders))
        self._engine = FusedEngine(model, fusion, Residency(FolderSource(folders), fusion, config.slots), config)
        self._numbers = itertools.count()
        self._loop = asyncio.Runner()
        self._loop.run(self._engine.start())

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
    engine = Engine(*map(Path, sys.argv[1:]))
    return engine.run, {name: version(name) for name in ("torch", "transformers")}


if __name__ == "__main__":
    serve(load)
