"""The specification of fusion, one adapter at a time.

Semantics, for every token t of a segment with parts {(i, w_i)}:

    y[t] += sum_i  w_i * s_i * B_i (A_i x[t])

x_TD input, y_TO output of the frozen layer, A_i [R_i, D], B_i [O, R_i], s_i the adapter's own scaling for this
module. Computed and added in float32, rounded once to the dtype of y. Ranks may differ between adapters; an adapter
without weights for this module adds nothing; a segment without parts leaves y as it is, bit for bit.

Two known ways to get it wrong, both in published code: one adapter's scaling for all, and w applied to A and B
both (which squares the weights and adds cross terms).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dlp_core.adapter import LoRAWeights
from dlp_core.ops.segments import Segment


def fused_lora(y_TO: Tensor, x_TD: Tensor, segments: tuple[Segment, ...], weights: Mapping[int, LoRAWeights]) -> Tensor:
    """Returns y plus the mixed deltas; neither input changes.

    `weights` maps slot to this module's factors. Segment lengths must sum to T.
    """
    result_TO = y_TO.clone()
    start = 0
    for segment in segments:
        end = start + segment.length
        delta_TO = torch.zeros(segment.length, y_TO.shape[1], dtype=torch.float32, device=y_TO.device)
        for slot, weight in segment.parts:
            if slot in weights:
                lora = weights[slot]
                z_TR = x_TD[start:end].float() @ lora.a_RD.float().T
                delta_TO += weight * lora.scaling * (z_TR @ lora.b_OR.float().T)
        if segment.parts:
            result_TO[start:end] = (y_TO[start:end].float() + delta_TO).to(y_TO.dtype)
        start = end
    assert start == y_TO.shape[0], "segments must cover the batch exactly"
    return result_TO
