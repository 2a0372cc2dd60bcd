"""The paper's released code (DLP-LoRA, arXiv 2410.01497): each layer applies one adapter after another to the batch.

    y = W x + sum_i w_i * B_i (A_i x)

This is its `ParallelSpdUp` with three changes in its favour. The original empties CUDA's cache in every layer; this
does not. The original supports one mix for the whole batch; here w_i is a column of one weight per token, zero where
the token does not use the adapter. The original scales all adapters by one scaling; here each has its own, folded in B.

Shape letters: T tokens, D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure.synthetic import twin
from dlp_core.adapter.weights import Adapter
from dlp_core.fusion.segments import Segment

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Factors of one adapter: module path to (A_RD, B_OR), with the scaling folded into B."""


class Loop(nn.Module):
    """A layer that loops over its adapters, each with one weight per token of the batch."""

    def __init__(self, layer: nn.Module, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self._layer = layer
        self._parts = parts

    def forward(self, x: Tensor) -> Tensor:
        outs = [linear(linear(x, a_RD), b_OR) for a_RD, b_OR, _ in self._parts]
        fused = sum(out * w_T.view(*x.shape[:-1], 1) for out, (_, _, w_T) in zip(outs, self._parts, strict=True))
        y: Tensor = self._layer(x) + fused
        return y


def loop_model(model: Any, adapters: Mapping[int, Factors], segments: Sequence[Segment]) -> Any:
    """A model with the same weights that runs only batches of these segments."""
    lengths = [segment.length for segment in segments]
    slots = sorted({slot for segment in segments for slot, _ in segment.parts})
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for slot in slots:
        weights = torch.tensor([dict(segment.parts).get(slot, 0.0) for segment in segments])
        w_T = weights.repeat_interleave(torch.tensor(lengths))
        for path, (a_RD, b_OR) in adapters[slot].items():
            parts.setdefault(path, []).append((a_RD, b_OR, w_T.to(a_RD)))
    looped = twin(model)
    for path, layer_parts in parts.items():
        looped.set_submodule(path, Loop(looped.get_submodule(path), layer_parts))
    return looped


def factors(adapter: Adapter, dtype: torch.dtype) -> Factors:
    return {
        path: (lora.a_RD.to(dtype), (lora.b_OR.float() * lora.scaling).to(dtype))
        for path, lora in adapter.modules.items()
    }
