"""The op that learns a mix: gradients flow to the weights of the adapters, and through the frozen model to those of all
layers.

Semantics, for every token t of the batch, whatever its segments' weights are:

    y[t] += sum_k  w[k] * (s_k * B_k (A_k x[t]) + c_k)        (see reference.py)

w_K are float32, one for each slot that the segments name. The factors have the model's dtype, as when they are served.

Shape letters: D in, O out, R ranks of all adapters together, K adapters.
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
    """All tokens of a batch run under one mix, whose weights are `weights_K`, by slot."""

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
        return LearntStep({slot: residents[slot] for slot in active}, self.weights_K) if active else None


class LearntStep(WholeStep):
    """One forward pass."""

    def __init__(self, residents: Mapping[int, Resident], weights_K: Tensor) -> None:
        self._residents = residents
        self._weights_K = weights_K

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        parts = {slot: held.modules[path] for slot, held in self._residents.items() if path in held.modules}
        if not parts:
            return y
        a_RD = torch.cat([part.a_RD for part in parts.values()])
        b_RO = torch.cat([part.b_RO for part in parts.values()])
        z_TR = x @ a_RD.T if x.is_floating_point() else embedding(x, a_RD.T)
        weighted_TR = (z_TR.float() + _ones_of_biases(parts, x.device)) * self._by_rank(parts)
        return y + weighted_TR.to(b_RO.dtype) @ b_RO

    def _by_rank(self, parts: Mapping[int, Factors]) -> Tensor:
        """The weight of the adapter that each row of the factors is of."""
        slot_R = [slot for slot, part in parts.items() for _ in range(len(part.a_RD))]
        return self._weights_K[torch.tensor(slot_R, device=self._weights_K.device)]


def _ones_of_biases(parts: Mapping[int, Factors], device: torch.device) -> Tensor:
    """What is added to the products: 1 for a trained bias, whose row of A is zeros."""
    ones = [[0.0] * (len(part.a_RD) - 1) + [1.0 if part.has_bias else 0.0] for part in parts.values()]
    return torch.tensor([value for part in ones for value in part], device=device)
