"""The specification of fusion, one adapter at a time.

Semantics, for every token t of a segment with parts {(i, w_i)}:

    y[t] += sum_i  w_i * (s_i * B_i (A_i x[t]) + c_i)

x_TD input, y_TO output of the frozen layer, A_i [R_i, D], B_i [O, R_i], s_i the adapter's own scaling for this
module, c_i [O] its trained bias minus the base's. For an embedding x_T holds token ids and A_i x[t] is column x[t] of
A_i. Computed and summed in float32, rounded once to the dtype of y. Ranks may differ between adapters; an adapter
without weights for this module adds nothing; a segment without parts leaves y unchanged, bit for bit.

Published code gets this wrong in two ways: it uses one adapter's scaling for all, or applies w to both A and B (which
squares the weights and adds cross terms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion.segments import Segment


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What one adapter adds to the output of one layer."""

    lora: LoRAWeights | None
    bias_delta_O: Tensor | None = None
    """Trained bias minus the base's."""


def fused_lora(y_TO: Tensor, x: Tensor, segments: tuple[Segment, ...], deltas: Mapping[int, Delta]) -> Tensor:
    """Return y plus the mixed deltas; neither input changes.

    x is [T, D], or [T] token ids for an embedding. `deltas` maps slot to what its adapter adds to this layer.
    Segment lengths must sum to T.
    """
    result_TO = y_TO.clone()
    start = 0
    for segment in segments:
        end = start + segment.length
        sum_TO = torch.zeros(segment.length, y_TO.shape[1], dtype=torch.float32, device=y_TO.device)
        for slot, weight in segment.parts:
            if slot in deltas:
                sum_TO += weight * _delta(x[start:end], deltas[slot], sum_TO)
        if segment.parts:
            result_TO[start:end] = (y_TO[start:end].float() + sum_TO).to(y_TO.dtype)
        start = end
    assert start == y_TO.shape[0], "segments must cover the batch exactly"
    return result_TO


def _delta(x: Tensor, delta: Delta, like_TO: Tensor) -> Tensor:
    result_TO = torch.zeros_like(like_TO)
    if delta.lora is not None:
        a_RD, b_OR = delta.lora.a_RD.float(), delta.lora.b_OR.float()
        z_TR = x.float() @ a_RD.T if x.is_floating_point() else a_RD[:, x].T
        result_TO += delta.lora.scaling * (z_TR @ b_OR.T)
    if delta.bias_delta_O is not None:
        result_TO += delta.bias_delta_O.float()
    return result_TO
