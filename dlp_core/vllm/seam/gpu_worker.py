"""vLLM's worker on CUDA devices, with mixes. Not yet run on one.

Where vLLM captures CUDA graphs, the layers' own code runs once, while a graph is captured; a replay reads what the
batch was entered with. So the op is given limits: it launches in every pass that may be captured, mix or no mix.
"""

from __future__ import annotations

import logging

from vllm.v1.worker.gpu_worker import Worker

from dlp_core.fusion.packed import Packed
from dlp_core.fusion.triton import Limits, TritonOp
from dlp_core.vllm.arrivals import COPYING, Arrivals
from dlp_core.vllm.seam.worker import Mixes, _InFlight

log = logging.getLogger(__name__)


class GpuMixWorker(Mixes, Worker):  # type: ignore[misc]
    """Adapters are copied beside the steps, and are in their slots from one step to the next."""

    def _new_op(self) -> TritonOp:
        self._arrivals = Arrivals(self.device)
        return TritonOp(self.device, self.model_config.dtype, self._limits())

    def _limits(self) -> Limits | None:
        """None if vLLM captures no graphs."""
        tokens = self.vllm_config.compilation_config.max_cudagraph_capture_size
        if not tokens:
            return None
        return Limits(
            tokens=tokens,
            slots=self._settings["slots"],
            modules={
                path: module.d_in if module.cut is None else module.cut.inputs[1] - module.cut.inputs[0]
                for path, module in self._modules.items()
            },
            groups={tuple(part.path for part in parts) for parts in _InFlight.parts.values()},
        )

    def _arrive(self, slot: int, packed: Packed) -> str:
        self._arrivals.start(slot, lambda: self._mine(packed))
        return COPYING

    def dlp_placed(self, slot: int) -> str | None:
        """What `dlp_place` answers, for an adapter that it began to copy. It is asked again while other workers copy
        theirs."""
        if not self._arrivals.expects(slot):
            return None
        try:
            resident = self._arrivals.take(slot)
        except Exception as error:
            log.exception("slot %d was not loaded", slot)
            return f"{type(error).__name__}: {error}"
        if resident is None:
            return COPYING
        self._residents[slot] = resident
        return None
