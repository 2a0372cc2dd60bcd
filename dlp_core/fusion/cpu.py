"""Fusion on CPUs: compiled kernels for batches with few products, wide matrix products for batches with many.

A decode step is bound by memory reads and call overhead: kernels read the adapters in place (`cpu_few`). A prompt is
bound by arithmetic, which the matrix units do best on concatenated factors (`cpu_many`). Both have the semantics of
`reference`, with factors rounded once to the model's dtype.

Everything here runs on the thread that runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dlp_core.fusion.cpu_few import FewTokens
from dlp_core.fusion.cpu_many import ManyTokens
from dlp_core.fusion.op import Step
from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment, active_slots

MAX_KERNEL_PRODUCTS = 2048
"""Products of a token with a row of A up to which the kernels are faster, on two cores: the ranks of all adapters,
summed over all tokens. At rank 8, mixes of three for 85 tokens."""


class CpuOp:
    """Picks an implementation for each forward pass; both cache what they prepare for the adapters in use."""

    max_rank: int | None = None

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is the model's: float32, bfloat16 or float16."""
        self.dtype = dtype
        self._few = FewTokens(dtype)
        self._many = ManyTokens()

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> Step | None:
        active = active_slots(segments)
        if not active:
            return None
        products = sum(segment.length * residents[slot].rank for segment in segments for slot, _ in segment.parts)
        implementation = self._few if products <= MAX_KERNEL_PRODUCTS else self._many
        return implementation.begin(segments, {slot: residents[slot] for slot in active}, head_rows)
