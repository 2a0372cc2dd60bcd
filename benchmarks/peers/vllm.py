"""vLLM as a worker (benchmarks/measure/worker.py), run by the Python it is installed in.

    PYTHON -m benchmarks.peers.vllm DTYPE MODEL_DIR [ADAPTERS_DIR]

With adapters, each request uses one at weight 1, because vLLM has no mixes. Without, LoRA is disabled altogether, as
the plain side requires. It runs as it does in a server: the engine in processes of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.worker import Batch, BatchResult, serve

SEQUENCES, CONTEXT = 64, 8192
"""Batch size and context length the engine is sized for: our engines' own."""


class Player:
    """vLLM on an event loop, which runs only during a batch."""

    def __init__(self, dtype: str, model: str, adapters: Sequence[Path]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
        from vllm.lora.request import LoRARequest  # noqa: PLC0415
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        self._lora = {f.name: LoRARequest(f.name, number, str(f)) for number, f in enumerate(adapters, 1)}
        lora: Mapping[str, Any] = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": 8}
        arguments = AsyncEngineArgs(
            model=model,
            dtype=dtype,
            max_model_len=CONTEXT,
            max_num_seqs=SEQUENCES,
            kv_cache_memory_bytes=2**30,
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **(lora if adapters else {}),
        )
        self._numbers = itertools.count()
        self._loop = asyncio.Runner()

        async def start() -> AsyncLLM:
            return AsyncLLM.from_engine_args(arguments)

        self._llm = self._loop.run(start())

    def run(self, batch: Batch) -> BatchResult:
        return self._loop.run(self._run(batch))

    async def _run(self, batch: Batch) -> BatchResult:
        started = time.perf_counter()
        requests = zip(batch.prompts, batch.mixes, strict=True)
        tokens = await asyncio.gather(*(self._generate(*request, batch.tokens) for request in requests))
        return BatchResult(time.perf_counter() - started, tokens)

    async def _generate(self, prompt: Sequence[int], mix: Mapping[str, float], tokens: int) -> list[int]:
        from vllm.inputs import TokensPrompt  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415

        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        [adapter] = [self._lora[name] for name in mix] or [None]
        outputs = self._llm.generate(
            TokensPrompt(prompt_token_ids=list(prompt)), sampling, str(next(self._numbers)), lora_request=adapter
        )
        return [token async for output in outputs for token in output.outputs[0].token_ids]


def load() -> tuple[Callable[[Batch], BatchResult], Mapping[str, str]]:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # its own binding starves on a machine that is shared
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    player = Player(*sys.argv[1:3], sorted(Path(sys.argv[3]).iterdir()) if len(sys.argv) > 3 else [])
    return player.run, {module.__name__: module.__version__ for module in (vllm, torch)}


if __name__ == "__main__":
    serve(load)
