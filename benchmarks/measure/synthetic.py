"""Random adapters for a real model: their outputs are noise, but their cost is real."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.fusion.layers import Fusion
from dlp_core.fusion.segments import Segment
from dlp_core.quiet import quiet_transformers

TARGETS = {
    "q,v": ("q_proj", "v_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def random_adapter(
    name: str, shapes: Mapping[str, LayerShape], *, targets: Sequence[str], rank: int, seed: int
) -> Adapter:
    """A LoRA of rank `rank` on every layer whose name ends in one of `targets`."""
    random = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=random) * 0.02).bfloat16()

    modules = {
        path: LoRAWeights(factor(rank, shape.d_in), factor(shape.d_out, rank), scaling=2.0)
        for path, shape in shapes.items()
        if path.rpartition(".")[2] in targets
    }
    return Adapter(name=name, base_model=None, modules=modules)


def twin(model: Any) -> Any:
    """A copy of the model with its own modules that share the weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def load_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def fused_pass(
    fusion: Fusion,
    forward: Callable[[], object],
    segments: Sequence[Segment],
    *,
    head_rows: Sequence[int] | None = None,
) -> Callable[[], None]:
    """A forward pass whose tokens run under `segments`."""

    def call() -> None:
        with fusion.batch(tuple(segments), head_rows=head_rows):
            forward()

    return call
