"""Fusion on CUDA devices: one kernel launch per group of modules with one input, and one more per layer. Needs triton.

Semantics: those of `reference`. Adapters stay where they were placed, in the model's dtype: factors are rounded to it
once, everything is summed in float32, and the sum is rounded once into y. Nothing is concatenated as on a CPU: that
would copy weights whenever the set of active adapters changes, in a step that is bound by reading weights. Instead, a
table on the device holds the address of each slot's factors (`triton_table`), and a plan, a few hundred integers copied
before the forward pass, says which tokens use which slots at what weight (`triton_plan`). Neither waits for the device.

CUDA graphs need `Limits`. Up to its number of tokens, the table and the plan then lie in buffers that never move, and
launches depend on the number of tokens alone. So a graph captured inside one batch may be replayed inside any other of
as many tokens, whatever its mixes and adapters, on the stream that the batch was entered on; and there is a step for
every batch, even for one without adapters, because a graph that was captured without launches would serve the plain
backbone ever after. Larger passes are not captured: their launches follow their own plan, as all do without limits.

While a graph is captured, the first kernel of a group is launched on a stream of its own, before the layer computes: a
branch of the graph, which runs beside the layer's own product and joins it again before the second kernel.

Shape letters: T tokens, D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlp_core.fusion.op import Part
from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment, active_slots
from dlp_core.fusion.triton_kernels import expand, shrink
from dlp_core.fusion.triton_plan import Places, Plan, make_plan, places, plan_size
from dlp_core.fusion.triton_table import Table

MAX_RANK = 256
"""Of an adapter, under limits. It takes room in a captured pass, and time only of the tokens that use it."""

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_TILE, _SMALL_TILE = 64, 16
"""Tokens of a tile. The small one is used in passes that may be captured, if no segment is longer, and in float32,
where a large tile does not fit into registers."""
_TILES_AT_ONCE, _PARTS_AT_ONCE = 128, 4
"""Programs side by side; each does every so many-th tile, or part of a mix. None of this is measured on a GPU yet."""
_BLOCK_R, _MAX_BLOCK_R, _BLOCK_N, _BLOCK_O = 16, 32, 32, 64
_BLOCK_D, _TOKEN_D = 64, 512
"""Columns of x in a block: with a tile of tokens, and with one token, whose products are so small that what matters is
how much is read at once."""
_PARTS_OF_A_LAUNCH = 3
"""Of a layer's outputs, q, k and v."""
_WARPS = {_SMALL_TILE: 4, _TILE: 8}
"""Of `expand`, which needs more registers than `shrink`: with 4, a large tile spills (benchmarks/kernels.py)."""
_STAGES = 2
"""Loops are short. A third stage costs a tile's kernels a third more registers (ptxas, capability 9.0)."""


class Limits(NamedTuple):
    """What CUDA graphs are captured for. Declared before the first capture; nothing that is served may exceed it."""

    tokens: int
    """Of the largest pass that is captured."""
    slots: int
    """Of adapters, and so the most adapters of a mix."""
    modules: Mapping[str, int]
    """Every module that adapters may change, with the width of its input."""
    groups: Collection[tuple[str, ...]]
    """The modules that read one input one after another, as `TritonStep.add` is told."""

    @property
    def columns(self) -> int:
        """Of z. A trained bias is one rank more."""
        return self.slots * (MAX_RANK + 1)


class _Work(NamedTuple):
    """What the launches of a layer need to know of its tokens. Under limits, their number says all of it."""

    plan: Tensor
    places: Places
    tokens: int
    tiles_at_once: int
    parts_at_once: int
    columns: int
    block_t: int
    block_r: int


class _Shrunk(NamedTuple):
    """A group's products with A. `members` are the modules in the table."""

    z: Tensor
    members: tuple[str, ...]
    work: _Work
    splits: int


class Branch:
    """A second stream, which runs beside the current one from a fork to the next join."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Launches go there, behind all that the current stream has been given. So memory that they take from one fork
        to the next is free again: what has read it was given before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for the branch."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


class TritonStep:
    """One forward pass. Made by `TritonOp.begin`, dropped after it. Without mixes, it fits any number of tokens."""

    def __init__(self, op: TritonOp, plan: Plan, own: Tensor | None, ready: torch.cuda.Event | None) -> None:
        """`own` is the plan on the device, unless it is in the op's buffer."""
        self._op = op
        self._plan = plan
        self._own = own
        self._ready = ready
        self._branched = False
        self._input: tuple[Tensor | None, tuple[str, ...], bool] = (None, (), False)
        self._shrunk: _Shrunk | None = None

    def prepare(self, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> None:
        if not _capturing(x.device) or self._has_shrunk(x, siblings, capturing=True):
            return
        if path in self._op.table.modules and (work := self._work(_tokens(x), head=head)) is not None:
            x_TD = x.contiguous()
            with self._op.branch.fork():
                self._shrunk = self._shrink(x_TD, siblings, work)
            self._input, self._branched = (x, siblings, True), True

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        if path not in self._op.table.modules or (work := self._work(_tokens(x), head=head)) is None:
            return y
        capturing = _capturing(x.device)
        if not self._has_shrunk(x, siblings, capturing):
            self._input = (x, siblings, capturing)
            self._shrunk = self._shrink(x.contiguous(), siblings, work)
        shrunk = self._shrunk
        assert shrunk is not None
        if self._branched:
            self._op.branch.join()
            self._branched = False
        if path == shrunk.members[-1]:  # nobody else reads this x: let go of it
            self._input, self._shrunk = (None, (), False), None
        return self._expand(y if y.stride(-1) == 1 else y.contiguous(), [Part(path, 0, y.shape[-1])], shrunk)

    def add_parts(self, y: Tensor, x: Tensor, parts: Sequence[Part], siblings: tuple[str, ...]) -> None:
        known = [part for part in parts if part.path in self._op.table.modules]
        if known and (work := self._work(_tokens(x), head=False)) is not None:
            shrunk = self._shrink(x.contiguous(), siblings, work)
            for first in range(0, len(known), _PARTS_OF_A_LAUNCH):
                self._expand(y, known[first : first + _PARTS_OF_A_LAUNCH], shrunk)

    def _has_shrunk(self, x: Tensor, siblings: tuple[str, ...], capturing: bool) -> bool:
        """Whether the last input was this one. What was shrunk before a capture is missing from the graph, and what was
        captured has not been computed."""
        known_x, known_siblings, was_capturing = self._input
        return x is known_x and siblings is known_siblings and capturing is was_capturing

    def _work(self, tokens: int, *, head: bool) -> _Work | None:
        """For a layer that sees so many tokens; None if there is none. Raises RuntimeError if they are neither the
        batch's nor the output head's."""
        plan = self._plan
        counts = {False: plan.tokens, True: plan.heads}
        if counts[head] != tokens:
            if counts[not head] == tokens:
                head = not head
            elif plan.tiles:
                raise RuntimeError(f"a layer sees {tokens} tokens, the batch's segments cover {plan.tokens}")
        if self._own is None:
            return self._op.captured_work(tokens, head=head)
        return _own_work(plan, self._own, head=head) if plan.tiles else None

    def _shrink(self, x: Tensor, siblings: tuple[str, ...], work: _Work) -> _Shrunk:
        """`x` is contiguous."""
        self._wait_for_plan()
        table, ids = self._op.table, not x.is_floating_point()
        width = table.width(siblings) if ids else x.shape[-1]
        span = triton.cdiv(triton.cdiv(width, _splits(work.tokens)), _TOKEN_D) * _TOKEN_D
        splits = 1 if ids else triton.cdiv(width, span)
        members, modules = table.group(siblings)
        z = torch.empty(splits, len(members), work.tokens, work.columns, device=x.device)
        shrink[work.parts_at_once * splits, len(members), work.tiles_at_once](
            x, z, work.plan, table.rows, modules, *work.places, work.tokens, work.columns, table.rows.stride(0), width,
            splits, span, DTYPE=_DTYPES[self._op.dtype], BLOCK_T=work.block_t, BLOCK_R=work.block_r, BLOCK_D=_BLOCK_D,
            TOKEN_R=_BLOCK_R, TOKEN_D=_TOKEN_D, num_stages=_STAGES, **self._op.pdl,
        )  # fmt: skip
        return _Shrunk(z, members, work, splits)

    def _expand(self, y: Tensor, parts: Sequence[Part], shrunk: _Shrunk) -> Tensor:
        """Add to up to _PARTS_OF_A_LAUNCH parts of y's outputs."""
        table, work = self._op.table, shrunk.work
        y_TO = y.reshape(-1, y.shape[-1])
        first = parts[0].start
        numbers: list[int] = []
        for n in range(_PARTS_OF_A_LAUNCH):
            part = parts[n] if n < len(parts) else Part(parts[0].path, first, first)
            numbers += [table.modules[part.path], shrunk.members.index(part.path), part.end - part.start]
            numbers += [part.start - first] if n else []
        blocks = sum(triton.cdiv(part.end - part.start, _BLOCK_O) for part in parts)
        expand[blocks, work.tiles_at_once](
            y_TO[:, first:], shrunk.z, work.plan, table.rows, *numbers,
            len(shrunk.members), *work.places, work.tokens, work.columns, table.rows.stride(0), y_TO.stride(0),
            PARTS=len(parts), ALIGNED=all(part.start % 16 == part.end % 16 == 0 for part in parts),
            DTYPE=_DTYPES[self._op.dtype], SPLITS=shrunk.splits, SPLITS_2=triton.next_power_of_2(shrunk.splits),
            BLOCK_T=work.block_t, BLOCK_N=_BLOCK_N, BLOCK_O=_BLOCK_O, num_warps=_WARPS[work.block_t],
            num_stages=_STAGES, **self._op.pdl,
        )  # fmt: skip
        return y if y_TO.data_ptr() == y.data_ptr() else y_TO.view(y.shape)

    def _wait_for_plan(self) -> None:
        """Wait for the plan if the model runs on another stream than the one it was copied on. While a graph is
        captured nothing runs; it must be replayed on the stream that copies the plan."""
        if self._ready is not None and not torch.cuda.is_current_stream_capturing():
            stream = torch.cuda.current_stream()
            stream.wait_event(self._ready)
            if self._own is not None:
                self._own.record_stream(stream)
            self._op.last_stream, self._ready = stream, None


class TritonOp:
    """The table of the adapters in the slots, and the plan of the step in flight."""

    def __init__(self, device: torch.device, dtype: torch.dtype, limits: Limits | None = None) -> None:
        """`dtype` is the model's: float32, bfloat16 or float16. Without `limits` no pass may be captured."""
        self.dtype = dtype
        self.max_rank = None if limits is None else MAX_RANK
        self.table = Table(device) if limits is None else Table(device, limits.slots, limits.modules, limits.groups)
        self.last_stream: torch.cuda.Stream | None = None
        self.branch = Branch(device)
        overlaps = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
        self.pdl: dict[str, Any] = {"PDL": overlaps} | ({"launch_pdl": True} if overlaps else {})
        """How kernels are launched."""
        self._device = device
        self._limits = limits
        self._plan = torch.empty(0)
        if limits is not None:
            with torch.inference_mode(False):  # writable in any mode
                self._plan = torch.zeros(plan_size(limits.tokens, limits.slots), dtype=torch.int32, device=device)

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> TritonStep | None:
        """Under limits there is a step for every batch."""
        active = active_slots(segments)
        if not active and self._limits is None:
            return None
        if _capturing(self._device):
            raise RuntimeError("enter the batch before capturing a graph: its plan must change between replays")
        if self.last_stream is not None:  # the last step may still be reading the table and the plan
            torch.cuda.current_stream(self._device).wait_stream(self.last_stream)
        self.table.update({slot: residents[slot] for slot in active}, self._copy)
        plan, own = self._place_plan(segments, residents, head_rows or ())
        on_gpu = self._device.type == "cuda"
        return TritonStep(self, plan, own, torch.cuda.current_stream(self._device).record_event() if on_gpu else None)

    def captured_work(self, tokens: int, *, head: bool) -> _Work | None:
        """The launches of a pass that may be captured. None for one that is too large; its step has a plan of its own,
        unless there is nothing to do."""
        limits = self._limits
        if limits is None or tokens > limits.tokens:
            return None
        return _Work(
            self._plan,
            places(limits.tokens, head=head),
            tokens,
            tiles_at_once=min(tokens, _TILES_AT_ONCE),
            parts_at_once=min(limits.slots, _PARTS_AT_ONCE),
            columns=limits.columns,
            block_t=_SMALL_TILE,
            block_r=_BLOCK_R,
        )

    def _place_plan(
        self, segments: tuple[Segment, ...], residents: Mapping[int, Resident], head_rows: Sequence[int]
    ) -> tuple[Plan, Tensor | None]:
        """The plan, and its copy on the device if that is not in the op's buffer."""
        tokens = sum(segment.length for segment in segments)
        limits = self._limits
        if limits is not None and tokens <= limits.tokens:
            plan = make_plan(segments, residents, head_rows, tile=_SMALL_TILE, capacity=limits.tokens)
            if plan.parts > limits.slots or plan.columns > limits.columns:
                raise RuntimeError(
                    f"a mix of {plan.parts} adapters of ranks up to {plan.rank} is beyond what CUDA graphs are made "
                    f"for: {limits.slots} adapters, rank {MAX_RANK}"
                )
            data = torch.from_numpy(plan.data)
            self._copy(data, self._plan[: data.numel()])
            return plan, None
        longest = max((segment.length for segment in segments if segment.parts), default=0)
        if limits is not None and not longest:  # graphs that are captured in this step find a plan of nothing
            return self._place_plan((), residents, ())
        tile = _SMALL_TILE if longest <= _SMALL_TILE or self.dtype == torch.float32 else _TILE
        plan = make_plan(segments, residents, head_rows, tile=tile, capacity=max(tokens, len(head_rows)))
        data = torch.from_numpy(plan.data)
        own = torch.empty(data.shape, dtype=data.dtype, device=self._device)
        self._copy(data, own)
        return plan, own

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Copy to the device without waiting. Freed pinned memory is reused only once its copies are done."""
        target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


def _own_work(plan: Plan, own: Tensor, *, head: bool) -> _Work:
    return _Work(
        own,
        places(plan.capacity, head=head),
        plan.heads if head else plan.tokens,
        tiles_at_once=min(plan.heads if head else plan.tiles, _TILES_AT_ONCE),
        parts_at_once=min(plan.parts, _PARTS_AT_ONCE),
        columns=plan.columns,
        block_t=plan.tile,
        block_r=min(_MAX_BLOCK_R, max(_BLOCK_R, triton.next_power_of_2(plan.rank))),
    )


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.is_floating_point() else x.numel()


def _splits(tokens: int) -> int:
    """Parts of x that are multiplied at once: the more, the fewer tokens there are to keep a device busy."""
    return 16 if tokens <= 32 else 4 if tokens <= 128 else 2


def _capturing(device: torch.device) -> bool:
    """Whether a launch on this device is recorded into a CUDA graph instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
