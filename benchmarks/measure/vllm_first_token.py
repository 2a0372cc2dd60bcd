"""From a new process to the first token of the engine inside vLLM. Runs in its environment.

    PYTHON -m benchmarks.measure.vllm_first_token MODEL_DIR DTYPE compiled|eager

Prints one JSON object: when the engine had started, and when its first token came, of the base model, as Unix times.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from pathlib import Path

from dlp_core.engine.config import EngineConfig, VllmConfig
from dlp_core.engine.request import Sampling
from dlp_core.mix import EMPTY_MIX
from dlp_core.residency.sources import FolderSource
from dlp_core.vllm.loading import load


async def main(model: str, dtype: str, *, eager: bool) -> None:
    config = EngineConfig(kind="vllm", vllm=VllmConfig(eager=eager))
    engine = load(Path(model), FolderSource({}), config, dtype=dtype, threads=None).engine
    await engine.start()
    times = {"started": time.time()}
    try:
        sampling = Sampling(max_tokens=2, ignore_eos=True)
        async with aclosing(engine.submit([1, 2, 3], EMPTY_MIX, sampling, request_id="first")) as events:
            await anext(events)
        times["first token"] = time.time()
    finally:
        await engine.stop()
    sys.stdout.write(json.dumps(times) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], eager=sys.argv[3] == "eager"))
