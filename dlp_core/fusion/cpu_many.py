"""Fusion on CPUs for many tokens: few, wide matrix products over the adapters that a batch uses.

The active adapters' factors are concatenated into one matrix per module,

    A_RD = [A_1; A_2; ...]     B_RO = [s_1 B_1^T; s_2 B_2^T; ...]     R = sum of the active ranks

so that with W_TR[t, r] = weight of token t for the adapter that column r belongs to (0 if token t does not use it)

    y_TO += ((x_TD A_RD^T + c_R) * W_TR) B_RO

is exactly the weighted sum, for mixed ranks and without padding. Where W is 0 the product is too, also if an adapter's
own overflows for a token that does not use it. c is one for the row of a trained bias, zero
elsewhere. Modules that read the same input (q, k and v; gate and up) share one product with A. Products are in the
model's dtype, which the matrix units support, and accumulate in float32.

The concatenated matrices are built when the set of active adapters changes, not at every step.

Shape letters: T tokens, D in, O out, R rank, S active slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlp_core.fusion.op import WholeStep
from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment

_MAX_UNUSED = 4
"""Unused adapters that may stay in a pack: dropping them costs a rebuild, keeping them costs a few columns."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The concatenated factors of modules that share an input. `layout[r]` is the position of row r's adapter."""

    a_RD: Tensor
    c_R: Tensor | None
    layout: tuple[int, ...]
    outputs: Mapping[str, tuple[int, int, Tensor]]
    """Module path to (first column, end column, B_RO)."""


@dataclass(slots=True, eq=False)
class _Pack:
    """The concatenated factors of some slots, built per group when first needed."""

    slots: tuple[int, ...]
    residents: tuple[Resident, ...]
    groups: dict[tuple[str, ...], _Group | None] = field(default_factory=dict)

    def group(self, paths: tuple[str, ...]) -> _Group | None:
        if paths not in self.groups:
            self.groups[paths] = self._build(paths)
        return self.groups[paths]

    def _build(self, paths: tuple[str, ...]) -> _Group | None:
        rows: list[Tensor] = []
        constants: list[float] = []
        layout: list[int] = []
        outputs: dict[str, tuple[int, int, Tensor]] = {}
        for path in paths:
            first = len(layout)
            b_factors: list[Tensor] = []
            for position, resident in enumerate(self.residents):
                if (factors := resident.modules.get(path)) is not None:
                    rank = factors.a_RD.shape[0]
                    rows.append(factors.a_RD)
                    b_factors.append(factors.b_RO)
                    layout += [position] * rank
                    constants += [0.0] * (rank - factors.has_bias) + [1.0] * factors.has_bias
            if b_factors:
                outputs[path] = (first, len(layout), torch.cat(b_factors))
        if not rows:
            return None
        a_RD = torch.cat(rows)
        c_R = torch.tensor(constants, dtype=a_RD.dtype) if any(constants) else None
        return _Group(a_RD, c_R, tuple(layout), outputs)


class ManyTokensStep(WholeStep):
    """One forward pass: its tokens' weights over a pack. Made by `ManyTokens.begin`, dropped after the pass."""

    def __init__(self, pack: _Pack, w_TS: Tensor, head_rows: Tensor | None) -> None:
        self._pack = pack
        self._w_TS = w_TS
        self._head_rows = head_rows
        self._w_TR: dict[tuple[tuple[int, ...], int, bool], tuple[Tensor, Tensor]] = {}
        self._input: tuple[Tensor | None, tuple[str, ...]] = (None, ())
        self._shrunk: tuple[_Group | None, Tensor | None] = (None, None)

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        if x is not self._input[0] or siblings is not self._input[1]:
            self._input = (x, siblings)
            self._shrunk = self._shrink(x, siblings, head=head)
        group, z_TR = self._shrunk
        if group is None or z_TR is None or path not in group.outputs:
            return y
        first, end, b_RO = group.outputs[path]
        if y.dtype != b_RO.dtype:  # a layer kept in another precision than the model's
            y += (z_TR[:, first:end] @ b_RO).view(y.shape)
            return y
        y = y.contiguous()
        y.view(-1, y.shape[-1]).addmm_(z_TR[:, first:end], b_RO)
        return y

    def _shrink(self, x: Tensor, siblings: tuple[str, ...], *, head: bool) -> tuple[_Group | None, Tensor | None]:
        group = self._pack.group(siblings)
        if group is None:
            return None, None
        if not x.is_floating_point():
            z_TR = group.a_RD[:, x.reshape(-1)].T
            z_TR = z_TR if group.c_R is None else z_TR + group.c_R
        else:
            x_TD = x.reshape(-1, x.shape[-1]).to(group.a_RD.dtype)
            z_TR = x_TD @ group.a_RD.T if group.c_R is None else torch.addmm(group.c_R, x_TD, group.a_RD.T)
        w_TR, unused_TR = self._weights(group.layout, z_TR.shape[0], head=head)
        weighted_TR = (z_TR * w_TR).masked_fill_(unused_TR, 0.0)  # float32
        return group, weighted_TR.to(z_TR.dtype)

    def _weights(self, layout: tuple[int, ...], tokens: int, *, head: bool) -> tuple[Tensor, Tensor]:
        """W_TR for all tokens, or for those that the output head computes, and where it is 0."""
        weights = self._w_TR.get((layout, tokens, head))
        if weights is None:
            w_TS = self._w_TS
            if self._head_rows is not None and (tokens != w_TS.shape[0] or (head and tokens == len(self._head_rows))):
                w_TS = w_TS.index_select(0, self._head_rows)
            if tokens != w_TS.shape[0]:
                raise RuntimeError(f"a layer sees {tokens} tokens, the batch's segments cover {self._w_TS.shape[0]}")
            columns = torch.tensor(layout)
            w_TR = w_TS.index_select(1, columns)
            weights = self._w_TR[layout, tokens, head] = w_TR, w_TR == 0
        return weights


class ManyTokens:
    """Packs the active adapters and makes one step per forward pass."""

    def __init__(self) -> None:
        self._pack: _Pack | None = None

    def begin(
        self, segments: tuple[Segment, ...], residents: Mapping[int, Resident], head_rows: Sequence[int] | None
    ) -> ManyTokensStep:
        pack = self._reusable(residents) or _Pack(tuple(residents), tuple(residents.values()))
        self._pack = pack
        position = {slot: index for index, slot in enumerate(pack.slots)}
        rows: list[list[float]] = []
        for segment in segments:
            row = [0.0] * len(pack.slots)
            for slot, weight in segment.parts:
                row[position[slot]] += weight
            rows.extend([row] * segment.length)
        w_TS = torch.tensor(rows, dtype=torch.float32)
        return ManyTokensStep(pack, w_TS, None if head_rows is None else torch.tensor(head_rows, dtype=torch.long))

    def _reusable(self, residents: Mapping[int, Resident]) -> _Pack | None:
        pack = self._pack
        if pack is None or len(pack.slots) > len(residents) + _MAX_UNUSED:
            return None
        packed = dict(zip(pack.slots, pack.residents, strict=True))
        return pack if all(packed.get(slot) is resident for slot, resident in residents.items()) else None
