"""Puts fusion into a model: wraps its linear layers once, then each forward pass carries its own mixes.

    fusion = install(model)
    fusion.load(0, adapter)
    with fusion.batch((Segment(length=5, parts=((0, 0.7),)),)):
        model(input_ids)                       # five tokens, each with 0.7 of the adapter in slot 0

Outside `batch`, and for segments without parts, the model computes what it computed before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dlp_core.adapter import Adapter, check_fits
from dlp_core.errors import InvalidRequest
from dlp_core.ops.cpu import CpuOp, Resident, Step, prepare
from dlp_core.ops.segments import Segment

_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that read the same hidden state in every model that has them by these names."""


class FusedLoRALinear(nn.Module):
    """A frozen linear layer plus the mixed LoRA deltas of the batch in flight: y = W x + sum_i w_i s_i B_i (A_i x)."""

    def __init__(self, base: nn.Linear, path: str, siblings: tuple[str, ...], fusion: Fusion) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.siblings = siblings
        self.fusion = fusion

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        step = self.fusion.step
        return y if step is None else step.add(y, x, self.path, self.siblings)


class Fusion:
    """The adapters in a model's slots and the batch in flight. One per model; made by `install`."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self.shapes = shapes
        """Module path to (D in, O out) of every layer an adapter may target."""
        self.step: Step | None = None
        self._device = device
        self._op = CpuOp()
        self._residents: dict[int, Resident] = {}

    def load(self, slot: int, adapter: Adapter) -> int:
        """Puts an adapter into a slot, replacing what was there; returns its bytes on the device. Safe beside a
        running batch as long as no token of that batch uses the slot. Raises AdapterRefused if it does not fit."""
        check_fits(adapter, self.shapes)
        resident = prepare(adapter, self._device)
        self._residents[slot] = resident
        return resident.nbytes

    def unload(self, slot: int) -> None:
        """Empties a slot; harmless if it is empty."""
        self._residents.pop(slot, None)

    @contextmanager
    def batch(self, segments: tuple[Segment, ...]) -> Iterator[None]:
        """Scopes one forward pass. The segments cover its tokens in order. Batches do not nest."""
        if self.step is not None:
            raise RuntimeError("a fused batch is already in flight on this model")
        self.step = self._op.begin(segments, self._residents)
        try:
            yield
        finally:
            self.step = None


def install(model: nn.Module) -> Fusion:
    """Wraps every linear layer of `model`, its output head excepted, in place.

    Raises ValueError if the model is installed already or has no linear layer to wrap.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }
    if not linears or any(isinstance(module, FusedLoRALinear) for module in model.modules()):
        raise ValueError("this model has no plain linear layers: is fusion installed already?")
    device = next(iter(linears.values())).weight.device
    fusion = Fusion({path: (m.in_features, m.out_features) for path, m in linears.items()}, device)
    for path, module in linears.items():
        parent, _, name = path.rpartition(".")
        wrapped = FusedLoRALinear(module, path, _siblings(parent, name, linears), fusion)
        setattr(model.get_submodule(parent), name, wrapped)
    return fusion


def read_shapes(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Shapes of the layers `install` would wrap in the model of this folder, without reading its weights.

    Raises InvalidRequest if the folder holds no model transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{folder} is not a folder of a causal language model: {error}") from None
    return install(model).shapes


def _siblings(parent: str, name: str, linears: Mapping[str, nn.Linear]) -> tuple[str, ...]:
    for names in _SHARED_INPUT:
        if name in names:
            return tuple(path for other in names if (path := f"{parent}.{other}") in linears)
    return (f"{parent}.{name}" if parent else name,)
