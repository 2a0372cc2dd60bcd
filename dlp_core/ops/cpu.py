"""Fusion in plain torch, fast on CPUs: few, wide float32 products over the adapters a batch really uses.

Semantics: those of `ops.reference`. The active adapters' factors lie side by side in one matrix per module,

    A_RD = [A_1; A_2; ...]     B_RO = [s_1 B_1^T; s_2 B_2^T; ...]     R = sum of the active ranks

so that with W_TR[t, r] = weight of token t for the adapter that column r belongs to (0 if it has none)

    y_TO += ((x_TD A_RD^T) * W_TR) B_RO

is exactly the weighted sum, for any mixture of ranks and without padding. Modules that read the same input
(q, k and v; gate and up) share one product with A. Low-rank products run in float32: at these sizes a bfloat16
product costs more (its fixed cost is some 20 us), and the sum is rounded once.

The side-by-side matrices are built when the set of active adapters changes, not at every step. Everything here
runs on the thread that runs the model, except `prepare`.

Shape letters: T tokens, D in, O out, R rank, S active slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlp_core.adapter import Adapter
from dlp_core.ops.segments import Segment, active_slots

_SLACK = 4
"""Adapters no token uses any more that may stay packed: dropping them costs a rebuild, keeping them a few columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """One adapter on the device: views into one contiguous float32 buffer, scaling folded into B."""

    buffer: Tensor
    modules: Mapping[str, tuple[Tensor, Tensor]]
    """Module path to (A_RD, s * B^T as RO)."""

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)


def prepare(adapter: Adapter, device: torch.device) -> Resident:
    """Copies an adapter to the device in one transfer. Safe on any thread."""
    host = torch.empty(adapter.parameters, dtype=torch.float32)
    spans: dict[str, tuple[int, int, int, int, int]] = {}
    end = 0
    for path, lora in adapter.modules.items():
        rank, d_in, d_out = lora.rank, int(lora.a_RD.shape[1]), int(lora.b_OR.shape[0])
        middle = end + rank * d_in
        host[end:middle].view(rank, d_in).copy_(lora.a_RD)
        torch.mul(lora.b_OR.T, lora.scaling, out=host[middle : middle + rank * d_out].view(rank, d_out))
        spans[path] = (end, middle, rank, d_in, d_out)
        end = middle + rank * d_out
    buffer = host.to(device)
    modules = {
        path: (
            buffer[start:middle].view(rank, d_in),
            buffer[middle : middle + rank * d_out].view(rank, d_out),
        )
        for path, (start, middle, rank, d_in, d_out) in spans.items()
    }
    return Resident(buffer=buffer, modules=modules)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The packed factors of modules that read one input. `layout[c]` is the slot position of A's row c."""

    a_RD: Tensor
    layout: tuple[int, ...]
    outs: Mapping[str, tuple[int, int, Tensor]]
    """Module path to (first column, end column, B_RO)."""


@dataclass(slots=True, eq=False)
class _Pack:
    """The side-by-side factors of some slots, built per group when first needed."""

    slots: tuple[int, ...]
    residents: tuple[Resident, ...]
    groups: dict[tuple[str, ...], _Group | None] = field(default_factory=dict)

    def group(self, paths: tuple[str, ...]) -> _Group | None:
        if paths not in self.groups:
            self.groups[paths] = self._build(paths)
        return self.groups[paths]

    def _build(self, paths: tuple[str, ...]) -> _Group | None:
        rows: list[Tensor] = []
        layout: list[int] = []
        outs: dict[str, tuple[int, int, Tensor]] = {}
        for path in paths:
            first = len(layout)
            backs: list[Tensor] = []
            for position, resident in enumerate(self.residents):
                if path in resident.modules:
                    a_RD, b_RO = resident.modules[path]
                    rows.append(a_RD)
                    backs.append(b_RO)
                    layout.extend([position] * a_RD.shape[0])
            if backs:
                outs[path] = (first, len(layout), torch.cat(backs))
        return _Group(torch.cat(rows), tuple(layout), outs) if rows else None


class Step:
    """One forward pass: the weights of its tokens over a pack. Made by `CpuOp.begin`, dropped after the pass."""

    def __init__(self, pack: _Pack, w_TS: Tensor) -> None:
        self._pack = pack
        self._w_TS = w_TS
        self._w_TR: dict[tuple[int, ...], Tensor] = {}
        self._input: Tensor | None = None
        self._shrunk: tuple[_Group | None, Tensor | None] = (None, None)

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...]) -> Tensor:
        """Returns y plus the mixed delta of module `path`. x [..., D], y [..., O]; leading dimensions hold the T
        tokens. `siblings` are the modules, `path` among them, that read this same x one after the other."""
        if x is not self._input:
            self._input = x
            self._shrunk = self._shrink(x, siblings)
        group, z_TR = self._shrunk
        if group is None or z_TR is None or path not in group.outs:
            return y
        first, end, b_RO = group.outs[path]
        y_TO = y.reshape(-1, y.shape[-1])
        return torch.addmm(y_TO.float(), z_TR[:, first:end], b_RO).to(y.dtype).view(y.shape)

    def _shrink(self, x: Tensor, siblings: tuple[str, ...]) -> tuple[_Group | None, Tensor | None]:
        group = self._pack.group(siblings)
        if group is None:
            return None, None
        w_TR = self._w_TR.get(group.layout)
        if w_TR is None:
            columns = torch.tensor(group.layout, device=self._w_TS.device)
            w_TR = self._w_TR[group.layout] = self._w_TS.index_select(1, columns)
        z_TR = torch.mm(x.reshape(-1, x.shape[-1]).float(), group.a_RD.T)
        return group, z_TR.mul_(w_TR)


class CpuOp:
    """Packs the active adapters and hands out one `Step` per forward pass."""

    def __init__(self) -> None:
        self._pack: _Pack | None = None

    def begin(self, segments: tuple[Segment, ...], residents: Mapping[int, Resident]) -> Step | None:
        """The step for these segments, or None if no token uses an adapter. `residents` maps slot to adapter."""
        active = active_slots(segments)
        if not active:
            return None
        pack = self._reusable(active, residents) or _Pack(active, tuple(residents[slot] for slot in active))
        self._pack = pack
        position = {slot: index for index, slot in enumerate(pack.slots)}
        rows: list[list[float]] = []
        for segment in segments:
            row = [0.0] * len(pack.slots)
            for slot, weight in segment.parts:
                row[position[slot]] += weight
            rows.extend([row] * segment.length)
        return Step(pack, torch.tensor(rows, dtype=torch.float32, device=pack.residents[0].buffer.device))

    def _reusable(self, active: tuple[int, ...], residents: Mapping[int, Resident]) -> _Pack | None:
        pack = self._pack
        if pack is None or len(pack.slots) > len(active) + _SLACK:
            return None
        packed = dict(zip(pack.slots, pack.residents, strict=True))
        return pack if all(packed.get(slot) is residents[slot] for slot in active) else None
