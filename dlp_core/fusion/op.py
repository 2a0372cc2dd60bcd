"""What layers.py asks of an op. Implemented for CPUs by `ops.cpu`, for CUDA devices by `ops.triton`."""

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
        """Returns y plus the mixed delta of module `path`. y [..., O], which the layer has just made and which may be
        changed in place; x [..., D], or token ids [...]; the leading dimensions hold the T tokens. `siblings` are the
        modules, `path` among them, that read this same x one after the other. The output `head` sees the batch's
        `head_rows`, in their order, also where they are as many as its tokens."""


class Op(Protocol):
    """The maths of one model's adapters on one kind of device."""

    dtype: torch.dtype
    """What adapters are packed in."""

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> Step | None:
        """The step for these segments, or None if no token uses an adapter. `residents` maps slot to adapter;
        `head_rows` are the tokens the output head is computed for, None for all."""
