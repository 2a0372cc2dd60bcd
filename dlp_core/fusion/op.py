"""The interface between layers.py and an op. `cpu` implements it for CPUs, `triton` for CUDA devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment


class Part(NamedTuple):
    """A module within a layer that holds several: its outputs are those from `start` to `end`."""

    path: str
    start: int
    end: int


class Step(Protocol):
    """One forward pass, dropped after it."""

    def prepare(self, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> None:
        """Called before the layer of `path` computes, with what `add` is given after it: what needs x alone may be
        begun."""

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        """Return y plus the mixed delta of module `path`. y [..., O] is the layer's fresh output and may be changed in
        place; x [..., D], or token ids [...]; the leading dimensions hold the T tokens. `siblings` are the modules,
        `path` among them, that read this same x one after another. The output `head` sees the batch's `head_rows`, in
        their order, even if there are as many of them as tokens."""

    def add_parts(self, y: Tensor, x: Tensor, parts: Sequence[Part], siblings: tuple[str, ...]) -> None:
        """Add the mixed deltas of several modules to y, the output of a layer that holds them, in place. `siblings`
        are all modules that read x."""


class WholeStep(ABC):
    """What a step does that begins nothing early and adds to one part after another."""

    @abstractmethod
    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor: ...

    def prepare(self, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> None:
        return

    def add_parts(self, y: Tensor, x: Tensor, parts: Sequence[Part], siblings: tuple[str, ...]) -> None:
        x = x.view_as(x)  # a new object: compiled code passes the same one with other content
        for part in parts:
            out = y if part.end - part.start == y.shape[-1] else y[..., part.start : part.end]
            result = self.add(out, x, part.path, siblings)
            if result is not out:
                out.copy_(result)


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
