"""The interface between layers.py and an op. `cpu` implements it for CPUs, `triton` for CUDA devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment


class Step(Protocol):
    """One forward pass, dropped after it."""

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        """Return y plus the mixed delta of module `path`. y [..., O] is the layer's fresh output and may be changed in
        place; x [..., D], or token ids [...]; the leading dimensions hold the T tokens. `siblings` are the modules,
        `path` among them, that read this same x one after another. The output `head` sees the batch's `head_rows`, in
        their order, even if there are as many of them as tokens."""


class Op(Protocol):
    """Computes one model's mixed deltas on one kind of device."""

    dtype: torch.dtype
    """The dtype adapters are packed in."""
    max_rank: int | None
    """The highest rank of an adapter that it takes; None for any."""

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> Step | None:
        """Make the step for these segments. It may be None if no token uses an adapter. `residents` maps slot to
        adapter; `head_rows` are the tokens that the output head computes, None for all."""
