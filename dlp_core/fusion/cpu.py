"""Fusion on CPUs: compiled kernels where a batch has little to compute, wide matrix products where it has much.

A decode step costs what it reads and what it calls: there, kernels go over the adapters where they lie
(`ops.cpu_few`). A prompt costs arithmetic, which the matrix units do best over factors laid side by side
(`ops.cpu_many`). Semantics of both: those of `ops.reference`, with factors rounded once to the model's dtype.

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

FEW = 2048
"""Products of a vector with a row of A up to which the kernels are the faster way, on two cores: the ranks of all
adapters of all tokens. At rank 8, mixes of three for 85 tokens."""


class CpuOp:
    """Chooses for each forward pass, and keeps what both ways prepare for the adapters in use."""

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
        way = self._few if products <= FEW else self._many
        return way.begin(segments, {slot: residents[slot] for slot in active}, head_rows)
