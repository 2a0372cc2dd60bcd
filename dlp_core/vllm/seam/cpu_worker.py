"""vLLM's worker on CPUs, with mixes. To import it changes torch.cuda: vLLM plays a GPU for code that it shares."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

from dlp_core.fusion.cpu import CpuOp
from dlp_core.fusion.packed import Packed, place
from dlp_core.vllm.seam.worker import Mixes


class CpuMixWorker(Mixes, CPUWorker):  # type: ignore[misc]
    """Adapters stay where they were mapped, or cut."""

    def _new_op(self) -> CpuOp:
        return CpuOp(self.model_config.dtype)

    def _arrive(self, slot: int, packed: Packed) -> None:
        self._residents[slot] = place(self._mine(packed), torch.device("cpu"))

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Draw tokens as vLLM does, but without generators for those that it throws away because their prompts go on.

        vLLM's first model runner would turn a request's own generator back by such a draw. Those of CPUs cannot be
        turned back: the error would end the engine, with a seed and a prompt of two chunks.
        """
        if self.use_v2_model_runner:
            return super().sample_tokens(grammar_output)
        generators = self.model_runner.input_batch.generators
        discarded = self.model_runner.discard_request_mask.np
        unused = {row: generators.pop(row) for row in list(generators) if discarded[row]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(unused)
