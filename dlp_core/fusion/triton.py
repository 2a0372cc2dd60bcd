"""Fusion on CUDA devices: one kernel launch per group of modules with one input, and one more per module. Needs triton.

Semantics: those of `reference`. Adapters stay where they were placed, in the model's dtype: factors are rounded to it
once, everything is summed in float32, and the sum is rounded once into y. Nothing is concatenated as on a CPU: that
would copy weights whenever the set of active adapters changes, in a step that is bound by reading weights. Instead, a
table on the device holds the address of each slot's factors, and a plan, a few hundred integers copied before the
forward pass, says which tokens use which slots at what weight.

Neither waits for the device, and both are in persistent buffers: a CUDA graph captured inside one `fusion.batch` may be
replayed inside any other whose step has the same `shape`, on the stream that the batch was entered on. A batch without
adapters has no step and needs a graph that was captured without one.

Shape letters: T tokens, D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment, active_slots
from dlp_core.fusion.triton_kernels import expand, shrink

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BLOCK_R = 16
"""Ranks of one program: the minimum for a Tensor Core product."""
_BLOCK_N = 32
_TILE, _SMALL_TILE = 64, 16
"""Tokens of a tile when prompts are computed. The small one is used if no segment is longer, and in float32, where a
large tile does not fit into registers."""


class _Blocks(NamedTuple):
    """How a layer's work is divided. Not yet measured on a GPU."""

    block_d: int
    splits: int
    block_o: int


_DECODE = _Blocks(block_d=512, splits=16, block_o=64)
"""One token per tile: the products are small, so what matters is how many programs read at once."""
_PREFILL = _Blocks(block_d=64, splits=4, block_o=64)


class Shape(NamedTuple):
    """Everything that a step's launches depend on. Filled by `TritonOp.begin`, compared before a graph is replayed."""

    tokens: int
    head_tokens: int
    tiles: int
    tile: int
    parts: int
    rank: int
    modules: int
    table: tuple[int, ...]
    plan: int


class _Tiles(NamedTuple):
    """Tiles of the plan that cover all tokens of a layer's input."""

    at: int
    number: int
    tokens: int
    size: int


class _Shrunk(NamedTuple):
    """A group's products with A. `members` are the modules that any adapter changes."""

    z: Tensor
    members: tuple[str, ...]
    tiles: _Tiles
    splits: int


class TritonStep:
    """One forward pass under the op's plan. Made by `TritonOp.begin`, dropped after the pass."""

    def __init__(self, op: TritonOp, shape: Shape, ready: torch.cuda.Event | None) -> None:
        self.shape = shape
        self._op = op
        self._ready = ready
        self._all = _Tiles(0, shape.tiles, shape.tokens, shape.tile)
        self._head = _Tiles(4 * shape.tiles, shape.head_tokens, shape.head_tokens, 1)
        self._parts_at = 4 * (shape.tiles + shape.head_tokens)
        self._input: tuple[Tensor | None, tuple[str, ...], bool] = (None, (), False)
        self._shrunk: _Shrunk | None = None

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        if path not in self._op.modules:
            return y
        capturing = _capturing(x.device)
        # What was shrunk before a capture is missing from the graph; what was captured has not been computed.
        if x is not self._input[0] or siblings is not self._input[1] or capturing is not self._input[2]:
            self._input = (x, siblings, capturing)
            self._shrunk = self._shrink(x, siblings, head=head)
        assert self._shrunk is not None
        return self._expand(y.contiguous(), path, self._shrunk)

    def _shrink(self, x: Tensor, siblings: tuple[str, ...], *, head: bool) -> _Shrunk:
        self._wait_for_plan()
        op, ids = self._op, not x.is_floating_point()
        x = x.contiguous()
        tokens, width = (x.numel(), op.width(siblings)) if ids else (x.numel() // x.shape[-1], x.shape[-1])
        tiles = self._tiles(tokens, head=head)
        blocks = _DECODE if tiles.size == 1 else _PREFILL
        span = triton.cdiv(triton.cdiv(width, blocks.splits), blocks.block_d) * blocks.block_d
        splits = 1 if ids else triton.cdiv(width, span)
        members, modules = op.group(siblings)
        parts, rank = self.shape.parts, self.shape.rank
        z = torch.empty(splits, len(members), tokens, parts * rank, device=x.device)
        shrink[parts * (rank // _BLOCK_R) * splits, len(members), tiles.number](
            x, z, op.plan, op.table, modules, tiles.at, self._parts_at, tokens, parts, op.table.stride(0), width,
            splits, span, DTYPE=_DTYPES[op.dtype], RANK=rank,
            BLOCK_T=tiles.size, BLOCK_R=_BLOCK_R, BLOCK_D=blocks.block_d,
        )  # fmt: skip
        return _Shrunk(z, members, tiles, splits)

    def _expand(self, y: Tensor, path: str, shrunk: _Shrunk) -> Tensor:
        op, tiles, width = self._op, shrunk.tiles, y.shape[-1]
        block_o = (_DECODE if tiles.size == 1 else _PREFILL).block_o
        expand[triton.cdiv(width, block_o), tiles.number](
            y, shrunk.z, op.plan, op.table, op.modules[path], shrunk.members.index(path), len(shrunk.members),
            tiles.at, self._parts_at, tiles.tokens, self.shape.parts, op.table.stride(0), width,
            DTYPE=_DTYPES[op.dtype], RANK=self.shape.rank, SPLITS=shrunk.splits,
            SPLITS_2=triton.next_power_of_2(shrunk.splits), BLOCK_T=tiles.size, BLOCK_N=_BLOCK_N, BLOCK_O=block_o,
        )  # fmt: skip
        return y

    def _tiles(self, tokens: int, *, head: bool) -> _Tiles:
        """The tiles for all tokens, or for those that the output head computes."""
        for tiles in (self._head, self._all) if head else (self._all, self._head):
            if tiles.tokens == tokens:
                return tiles
        raise RuntimeError(f"a layer sees {tokens} tokens, the batch's segments cover {self.shape.tokens}")

    def _wait_for_plan(self) -> None:
        """Wait for the plan if the model runs on another stream than the one it was copied on. While a graph is
        captured nothing runs; it must be replayed on the stream that copies the plan."""
        if self._ready is not None and not torch.cuda.is_current_stream_capturing():
            stream = torch.cuda.current_stream()
            stream.wait_event(self._ready)
            self._op.last_stream, self._ready = stream, None


class TritonOp:
    """The table of the adapters in the slots, and the plan of the step in flight."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """`dtype` is the model's: float32, bfloat16 or float16."""
        self.dtype = dtype
        self.modules: dict[str, int] = {}
        """Module path to its row in a slot's table. It has only modules that some adapter has changed; no kernel is
        launched for the others."""
        self.table = _buffer(64, 64, 4, dtype=torch.int64, device=device)
        self.plan = _buffer(2**16, dtype=torch.int32, device=device)
        self.last_stream: torch.cuda.Stream | None = None
        self._device = device
        self._rank = _BLOCK_R
        self._widths: dict[str, int] = {}
        self._groups: dict[tuple[str, ...], tuple[tuple[str, ...], Tensor]] = {}
        self._in_table: WeakValueDictionary[int, Resident] = WeakValueDictionary()

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> TritonStep | None:
        active = active_slots(segments)
        if not active:
            return None
        if _capturing(self._device):
            raise RuntimeError("enter the batch before capturing a graph: its plan must change between replays")
        if self.last_stream is not None:  # the last step may still be reading the table and the plan
            torch.cuda.current_stream(self._device).wait_stream(self.last_stream)
        self._update_table({slot: residents[slot] for slot in active})
        shape = self._make_plan(segments, head_rows or ())
        on_gpu = self._device.type == "cuda"
        return TritonStep(self, shape, torch.cuda.current_stream(self._device).record_event() if on_gpu else None)

    def group(self, siblings: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
        """The modules of a group that are in the table, and their rows in it."""
        if siblings not in self._groups:
            members = tuple(path for path in siblings if path in self.modules)
            rows = torch.tensor([self.modules[path] for path in members], dtype=torch.int32, device=self._device)
            self._groups[siblings] = members, rows
        return self._groups[siblings]

    def width(self, siblings: tuple[str, ...]) -> int:
        """Columns of A, for modules whose inputs are token ids."""
        return next(self._widths[path] for path in siblings if path in self._widths)

    def _update_table(self, active: Mapping[int, Resident]) -> None:
        """Update the table for those of these slots whose adapter has changed."""
        if not self._changed(active):
            return
        for resident in self._changed(active).values():
            for path, factors in resident.modules.items():
                if path not in self.modules:
                    self.modules[path] = len(self.modules)
                    self._widths[path] = factors.a_RD.shape[1]
                    self._groups.clear()
                self._rank = max(self._rank, _round_up(factors.a_RD.shape[0], _BLOCK_R))
        slots, modules, _ = self.table.shape
        if max(active) >= slots or len(self.modules) > modules:
            slots = max(slots, _round_up(max(active) + 1, 64))
            modules = max(modules, _round_up(len(self.modules), 64))
            self.table = _buffer(slots, modules, 4, dtype=torch.int64, device=self._device)
            self._in_table.clear()
        for slot, resident in self._changed(active).items():
            rows = [[0, 0, 0, 0]] * self.table.shape[1]
            for path, (a_RD, b_RO, has_bias) in resident.modules.items():
                rows[self.modules[path]] = [a_RD.data_ptr(), b_RO.data_ptr(), a_RD.shape[0], int(has_bias)]
            self._copy(torch.tensor(rows), self.table[slot])
            self._in_table[slot] = resident

    def _changed(self, active: Mapping[int, Resident]) -> dict[int, Resident]:
        return {slot: resident for slot, resident in active.items() if self._in_table.get(slot) is not resident}

    def _make_plan(self, segments: tuple[Segment, ...], head_rows: Sequence[int]) -> Shape:
        max_length = max(segment.length for segment in segments if segment.parts)
        small = max_length <= _SMALL_TILE or self.dtype == torch.float32
        size = 1 if max_length == 1 else _SMALL_TILE if small else _TILE
        tiles: list[tuple[int, int, int, int]] = []
        parts: list[tuple[int, float]] = []
        mixes: list[tuple[int, int]] = []
        """(first part, number of parts) of each token."""
        for segment in segments:
            start, mix = len(mixes), (len(parts), len(segment.parts))
            mixes += [mix] * segment.length
            if segment.parts:
                parts += segment.parts
                tiles += [(t, min(size, len(mixes) - t), *mix) for t in range(start, len(mixes), size)]
        if size == 1:  # as many tiles as tokens, so that a graph fits whichever tokens use adapters
            tiles += [(0, 0, 0, 0)] * (len(mixes) - len(tiles))
        heads = [(row, 1, *mixes[token]) for row, token in enumerate(head_rows)]
        slots, weights = zip(*parts, strict=True)
        plan = torch.tensor(list(chain(*tiles, *heads)), dtype=torch.int32)
        bits = torch.tensor(weights, dtype=torch.float32).view(torch.int32)
        plan = torch.cat((plan, torch.stack((torch.tensor(slots, dtype=torch.int32), bits), 1).flatten()))
        if plan.numel() > self.plan.numel():
            self.plan = _buffer(2 * plan.numel(), dtype=torch.int32, device=self._device)
        self._copy(plan, self.plan[: plan.numel()])
        return Shape(
            tokens=len(mixes),
            head_tokens=len(heads),
            tiles=len(tiles),
            tile=size,
            parts=max(count for _, count in mixes),
            rank=self._rank,
            modules=len(self.modules),
            table=tuple(self.table.shape),
            plan=self.plan.numel(),
        )

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Copy to the device without waiting. Freed pinned memory is reused only once its copies are done."""
        target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


def _buffer(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros that are writable in any mode, even if a batch in inference mode allocates them."""
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=dtype, device=device)


def _capturing(device: torch.device) -> bool:
    """Whether a launch on this device is recorded into a CUDA graph instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
