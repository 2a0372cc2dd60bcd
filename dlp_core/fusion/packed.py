"""One adapter in the layout the ops read: all its factors in one buffer, moved to the device in one copy.

    A_RD     rank by inputs          B_RO = s * B^T, rank by outputs

A trained bias is an extra row of both: zeros in A, the bias in B. `has_bias` marks it, and an op uses 1 as the product
of that row of A. Nothing is padded to the largest rank, so mixed ranks cost no more than their sum.

Shape letters: D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dlp_core.fusion.layout import aligned, packed_elements, pinned_bytes
from dlp_core.fusion.reference import Delta


class Shape(NamedTuple):
    """One module's part of a packed adapter. Its last row is the trained bias if `has_bias`."""

    path: str
    rank: int
    d_in: int
    d_out: int
    has_bias: bool


class Factors(NamedTuple):
    """One adapter's part in one module: views into its buffer."""

    a_RD: Tensor
    b_RO: Tensor
    has_bias: bool


class Cut(NamedTuple):
    """What of a module one process computes, where several share it: ranges of its inputs and outputs."""

    inputs: tuple[int, int]
    outputs: tuple[tuple[int, int], ...]
    """In the order they have in the process's own output."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One adapter in host memory: one contiguous buffer, module after module."""

    buffer: Tensor
    shapes: tuple[Shape, ...]

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)

    @property
    def host_bytes(self) -> int:
        """What it takes of host memory."""
        return pinned_bytes(self.nbytes) if self.buffer.is_pinned() else self.nbytes


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Resident:
    """One adapter on the device: the same buffer there."""

    buffer: Tensor
    modules: Mapping[str, Factors]
    rank: int
    """The largest rank of any of its modules."""

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)


def pack(deltas: Mapping[str, Delta], d_in: Mapping[str, int], *, dtype: torch.dtype, pinned: bool) -> Packed:
    """Pack what an adapter adds to each module into one buffer of `dtype`. `d_in` maps those modules to their input
    width; a `pinned` buffer can be copied to a CUDA device while it computes. Safe on any thread.

    Raises OverflowError, naming the module, for values that `dtype` cannot hold.
    """
    shapes = tuple(_shape(path, delta, d_in[path]) for path, delta in deltas.items())
    buffer = torch.empty(_size(shapes), dtype=dtype, pin_memory=pinned)
    for (a_RD, b_RO, _), (path, delta) in zip(_views(buffer, shapes), deltas.items(), strict=True):
        if delta.lora is not None:
            rank = delta.lora.a_RD.shape[0]
            a_RD[:rank] = delta.lora.a_RD
            b_RO[:rank] = delta.lora.b_OR.T.float() * delta.lora.scaling
        if delta.bias_delta_O is not None:
            a_RD[-1] = 0
            b_RO[-1] = delta.bias_delta_O
        if not (a_RD.isfinite().all() and b_RO.isfinite().all()):
            raise OverflowError(f"{path} has values beyond {dtype}")
    return Packed(buffer, shapes)


def cut(packed: Packed, cuts: Mapping[str, Cut]) -> Packed:
    """What one process needs of a packed adapter: of the modules in `cuts` its part, of others all. Not for adapters
    with trained biases: every process would add them.

    Where inputs are cut, the processes' deltas add up to the module's; where outputs are, they lie side by side.
    """
    ranges = [cuts.get(shape.path, Cut((0, shape.d_in), ((0, shape.d_out),))) for shape in packed.shapes]
    shapes = tuple(
        shape._replace(d_in=last - first, d_out=sum(end - start for start, end in outputs))
        for shape, ((first, last), outputs) in zip(packed.shapes, ranges, strict=True)
    )
    buffer = torch.empty(_size(shapes), dtype=packed.buffer.dtype)
    parts = zip(_views(buffer, shapes), _views(packed.buffer, packed.shapes), ranges, strict=True)
    for (a_RD, b_RO, has_bias), (all_a_RD, all_b_RO, _), ((first, last), outputs) in parts:
        assert not has_bias
        a_RD.copy_(all_a_RD[:, first:last])
        torch.cat([all_b_RO[:, start:end] for start, end in outputs], dim=1, out=b_RO)
    return Packed(buffer, shapes)


def place(packed: Packed, device: torch.device) -> Resident:
    """Copy an adapter to the device in one transfer, and return when it has arrived. Safe on any thread.

    On a CPU nothing is copied: the buffer is shared. On CUDA devices copies have a stream of their own, or the steps
    would wait for them: each prepares its inputs on the default one.
    """
    if device.type != "cuda":
        return resident(packed.buffer.to(device), packed.shapes)
    stream, pool = _copies(device)
    with torch.cuda.device(device), torch.cuda.stream(stream), torch.cuda.use_mem_pool(pool):
        buffer = packed.buffer.to(device, non_blocking=True)
        stream.synchronize()
    return resident(buffer, packed.shapes)


@cache
def _copies(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.MemPool]:
    """The stream of copies, and memory that adapters alone use: an adapter of many megabytes leaves a place for the
    next one, and not for what a forward pass needs for a moment."""
    with torch.cuda.device(device):
        return torch.cuda.Stream(device), torch.cuda.MemPool()  # type: ignore[no-untyped-call]


def resident(buffer: Tensor, shapes: Sequence[Shape]) -> Resident:
    """The adapter that a packed one's buffer is, wherever it has been copied to."""
    factors = _views(buffer, shapes)
    modules = {shape.path: next(factors) for shape in shapes}
    return Resident(buffer, modules, max((shape.rank for shape in shapes), default=0))


def _shape(path: str, delta: Delta, d_in: int) -> Shape:
    rank, d_out = 0, 0
    if delta.lora is not None:
        rank, d_out = delta.lora.a_RD.shape[0], delta.lora.b_OR.shape[0]
    if delta.bias_delta_O is not None:
        rank, d_out = rank + 1, delta.bias_delta_O.shape[0]
    return Shape(path, rank, d_in, d_out, delta.bias_delta_O is not None)


def _views(buffer: Tensor, shapes: Sequence[Shape]) -> Iterator[Factors]:
    start = 0
    for shape in shapes:
        middle = start + aligned(shape.rank * shape.d_in)
        yield Factors(
            buffer.as_strided((shape.rank, shape.d_in), (shape.d_in, 1), start),
            buffer.as_strided((shape.rank, shape.d_out), (shape.d_out, 1), middle),
            shape.has_bias,
        )
        start = middle + aligned(shape.rank * shape.d_out)


def _size(shapes: Sequence[Shape]) -> int:
    return packed_elements((shape.rank, shape.d_in, shape.d_out) for shape in shapes)
