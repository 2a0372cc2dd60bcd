"""vLLM as a worker (benchmarks/measure/worker.py), run by the Python it is installed in.

    PYTHON -m benchmarks.peers.vllm MODEL_DIR [ADAPTERS_DIR]

With adapters, each request uses one at weight 1, because vLLM has no mixes. Without, LoRA is disabled altogether, as
the plain side requires.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measure.worker import Batch, BatchResult, serve

SEQUENCES, CONTEXT = 16, 256
"""Batch size and context length the engine is sized for."""


def load() -> tuple[Callable[[Batch], BatchResult], Mapping[str, str]]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # runs in this process, where an idle engine does not poll
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    folders = sorted(Path(sys.argv[2]).iterdir()) if len(sys.argv) > 2 else []
    lora = {folder.name: LoRARequest(folder.name, number, str(folder)) for number, folder in enumerate(folders, 1)}
    llm = vllm.LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=CONTEXT,
        max_num_seqs=SEQUENCES,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **({"enable_lora": True, "max_loras": len(lora), "max_lora_rank": 8} if lora else {}),
    )

    def run(batch: Batch) -> BatchResult:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=batch.tokens, ignore_eos=True, detokenize=False)
        adapters = [lora[name] for mix in batch.mixes for name in mix]
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in batch.prompts]
        started = time.perf_counter()
        answers = llm.generate(prompts, sampling, use_tqdm=False, lora_request=adapters or None)
        return BatchResult(time.perf_counter() - started, [list(answer.outputs[0].token_ids) for answer in answers])

    return run, {module.__name__: module.__version__ for module in (vllm, torch)}


if __name__ == "__main__":
    serve(load)
