"""vLLM's worker on CPUs, with mixes. To import it changes torch.cuda: vLLM plays a GPU for code that it shares."""

from __future__ import annotations

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
