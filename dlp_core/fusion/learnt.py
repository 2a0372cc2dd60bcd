"""The op that learns a mix: gradients flow to the weights of the adapters, and through the frozen model to those of all
layers.

Semantics, for every token t of the batch, over the adapters k that its segment names, whatever their weights there:

    y[t] += sum_k  w[k] * (s_k * B_k (A_k x[t]) + c_k)        (see reference.py)

w_K are float32, one for each slot. The factors have the model's dtype, as when they are served.

Shape letters: T tokens, D in, O out, R ranks of all adapters together, K slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding

from dlp_core.fusion.op import WholeStep
from dlp_core.fusion.packed import Factors, Resident
from dlp_core.fusion.segments import Segment, active_slots


class LearntOp:
    """Each token runs under the adapters of its segment, with the weights `weights_K`, by slot."""

    max_rank: int | None = None

    def __init__(self, dtype: torch.dtype, slots: int, device: torch.device | str = "cpu") -> None:
        """`dtype` is the model's."""
        self.dtype = dtype
        self.weights_K = torch.zeros(slots, device=device, requires_grad=True)

    def begin(
        self,
        segments: tuple[Segment, ...],
        residents: Mapping[int, Resident],
        head_rows: Sequence[int] | None = None,
    ) -> LearntStep | None:
        active = active_slots(segments)
        if not active:
            return None
        runs_TK = None
        if len({frozenset(slot for slot, _ in segment.parts) for segment in segments}) > 1:
            runs_TK = _runs(segments, self.weights_K)
        rows = None if head_rows is None else torch.tensor(head_rows, device=self.weights_K.device)
        return LearntStep({slot: residents[slot] for slot in active}, self.weights_K, runs_TK, rows)


class LearntStep(WholeStep):
    """One forward pass."""

    def __init__(
        self,
        residents: Mapping[int, Resident],
        weights_K: Tensor,
        runs_TK: Tensor | None,
        head_rows: Tensor | None,
    ) -> None:
        """`runs_TK` is 1 where an adapter runs, None if all run at every token."""
        self._residents = residents
        self._weights_K = weights_K
        self._runs_TK = runs_TK
        self._head_rows = head_rows

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        parts = {slot: held.modules[path] for slot, held in self._residents.items() if path in held.modules}
        if not parts:
            return y
        a_RD = torch.cat([part.a_RD for part in parts.values()])
        b_RO = torch.cat([part.b_RO for part in parts.values()])
        z_TR = x @ a_RD.T if x.is_floating_point() else embedding(x, a_RD.T)
        slots = [slot for slot, part in parts.items() for _ in range(len(part.a_RD))]
        slot_R = torch.tensor(slots, device=self._weights_K.device)
        weighted_TR = (z_TR.float() + _ones_of_biases(parts, x.device)) * self._weights_K[slot_R]
        if self._runs_TK is not None:
            runs_TK = self._runs_TK[self._head_rows] if head and self._head_rows is not None else self._runs_TK
            weighted_TR = weighted_TR * runs_TK[:, slot_R].view(weighted_TR.shape)
        return y + weighted_TR.to(b_RO.dtype) @ b_RO


def _runs(segments: Sequence[Segment], weights_K: Tensor) -> Tensor:
    """1 at the tokens and slots of the segments, in the shape T, K."""
    runs_TK = torch.zeros(sum(segment.length for segment in segments), len(weights_K), device=weights_K.device)
    start = 0
    for segment in segments:
        runs_TK[start : start + segment.length, [slot for slot, _ in segment.parts]] = 1.0
        start += segment.length
    return runs_TK


def _ones_of_biases(parts: Mapping[int, Factors], device: torch.device) -> Tensor:
    """What is added to the products: 1 for a trained bias, whose row of A is zeros."""
    ones = [[0.0] * (len(part.a_RD) - 1) + [1.0 if part.has_bias else 0.0] for part in parts.values()]
    return torch.tensor([value for part in ones for value in part], device=device)
