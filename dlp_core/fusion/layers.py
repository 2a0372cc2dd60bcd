"""Installs fusion in a model: every forward pass then carries its own mixes.

    fusion = install(model)
    fusion.load(0, adapter)
    with fusion.batch((Segment(length=5, parts=((0, 0.7),)),)):
        model(input_ids)                       # five tokens, each with 0.7 of the adapter in slot 0

`install` replaces the `forward` of each layer object and leaves the modules in place, so it does not matter how a layer
is implemented (plain, tied, quantised). Outside `batch`, and for segments without parts, the model computes what it
computed before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.fitting import fit
from dlp_core.adapter.invocation import check_spoken
from dlp_core.adapter.prompting import read_vocabulary
from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.fusion.op import Op, Step
from dlp_core.fusion.packed import Packed, Resident, pack, place
from dlp_core.fusion.reference import Delta
from dlp_core.fusion.segments import Segment

_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that read the same hidden state in every model that uses these names."""


class FusedForward:
    """A layer's own forward plus the mixed deltas of the batch in flight: y = f(x) + sum_i w_i delta_i(x)."""

    __slots__ = ("_forward", "_fusion", "_head", "_path", "_siblings")

    def __init__(
        self, forward: Callable[..., Tensor], path: str, siblings: tuple[str, ...], fusion: Fusion, *, head: bool
    ) -> None:
        self._forward = forward
        self._path = path
        self._siblings = siblings
        self._fusion = fusion
        self._head = head

    def __call__(self, x: Tensor) -> Tensor:
        step = self._fusion.step
        if step is None:
            return self._forward(x)
        step.prepare(x, self._path, self._siblings, head=self._head)
        return step.add(self._forward(x), x, self._path, self._siblings, head=self._head)


class Fusion:
    """The adapters in a model's slots and the batch in flight. One per model; made by `install`."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        shapes: Mapping[str, LayerShape],
        groups: Collection[tuple[str, ...]],
        device: torch.device,
        op: Op,
    ) -> None:
        self.shapes = shapes
        """Module path to shape of every layer an adapter may change."""
        self.groups = groups
        """Those of them that read one input, one after another."""
        self.step: Step | None = None
        self._layers = layers
        self._device = device
        self._op = op
        self._residents: dict[int, Resident] = {}

    def load(self, slot: int, adapter: Adapter) -> int:
        """Load an adapter into a slot, replacing its content; returns the adapter's bytes on the device. Safe during a
        running batch as long as no token of that batch uses the slot. Raises AdapterRefused if it does not fit."""
        return self.place(slot, self.pack(adapter))

    def pack(self, adapter: Adapter) -> Packed:
        """The first half of `load`: check an adapter and pack it in host memory. Safe on any thread."""
        adapter = fit(adapter, self.shapes, max_rank=self._op.max_rank)
        deltas = self._deltas(adapter)
        d_in = {path: self.shapes[path].d_in for path in deltas}
        try:
            return pack(deltas, d_in, dtype=self._op.dtype, pinned=self._device.type == "cuda")
        except OverflowError as error:
            raise AdapterRefused(f"adapter {adapter.name!r}: {error}, which this server computes in") from None

    def place(self, slot: int, packed: Packed) -> int:
        """The second half of `load`: one copy to the device. Safe on any thread, as `load` is."""
        resident = place(packed, self._device)
        self._residents[slot] = resident
        return resident.nbytes

    def unload(self, slot: int) -> None:
        """Empty a slot; a no-op if it is empty."""
        self._residents.pop(slot, None)

    @contextmanager
    def batch(self, segments: tuple[Segment, ...], head_rows: Sequence[int] | None = None) -> Iterator[None]:
        """Scope one forward pass. The segments cover its tokens in order. `head_rows` are the tokens whose logits are
        computed (the model's `logits_to_keep`), None for all. Raises RuntimeError if batches are nested."""
        if self.step is not None:
            raise RuntimeError("a fused batch is already in flight on this model")
        self.step = self._op.begin(segments, self._residents, head_rows)
        try:
            yield
        finally:
            self.step = None

    def _deltas(self, adapter: Adapter) -> dict[str, Delta]:
        for path, copy in adapter.copies.items():
            weight = getattr(self._layers[path], "weight", None)
            if weight is None or not torch.equal(copy.to(weight.dtype).float(), _to_host(weight)):
                raise AdapterRefused(
                    f"adapter {adapter.name!r} contains a weight for {path!r} that differs from the base model's; "
                    "serve the changed model as a base model of its own"
                )
        deltas = {}
        for path in {**adapter.modules, **adapter.biases}:
            layer, lora, bias = self._layers[path], adapter.modules.get(path), adapter.biases.get(path)
            if lora is not None and (scale := getattr(layer, "embed_scale", None)) is not None:
                # Gemma scales the embeddings it looks up, LoRA included
                lora = LoRAWeights(lora.a_RD, lora.b_OR, lora.scaling * float(scale))
            bias_delta = None if bias is None else bias.float() - _to_host(layer.bias)
            deltas[path] = Delta(lora, bias_delta)
        return deltas


class Graphs(NamedTuple):
    """What CUDA graphs are captured of."""

    tokens: int
    """Of the largest pass."""
    slots: int
    """For adapters."""


def install(model: nn.Module, op: Op | None = None, *, graphs: Graphs | None = None) -> Fusion:
    """Make every linear layer, embedding and biased LayerNorm of `model` add mixed deltas, in place.

    `op` computes them; the default is the one for the model's device, of which passes may be captured as CUDA graphs if
    `graphs` is given. Layers of a mixture's experts are left alone: each sees only some of the tokens. Raises
    ValueError if fusion is already installed or the model has no such layer.
    """
    layers = _layers(model)
    if any(isinstance(module.forward, FusedForward) for module in layers.values()):
        raise ValueError("fusion is already installed on this model")
    device = next(model.parameters()).device
    groups: dict[tuple[str, ...], tuple[str, ...]] = {}
    siblings = {path: _siblings(path, layers) for path in layers}
    for group in siblings.values():
        groups.setdefault(group, group)  # one object per group: a step compares by identity
    shapes = {path: _shape(layer) for path, layer in layers.items()}
    fusion = Fusion(layers, shapes, groups, device, op or _op(model, device, shapes, groups, graphs))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in layers.items():
        module.forward = FusedForward(module.forward, path, groups[siblings[path]], fusion, head=module is head)
    return fusion


def read_shapes(folder: Path) -> Mapping[str, LayerShape]:
    """Read the shapes of the layers an adapter may change in the model of this folder, without its weights.

    Raises InvalidRequest if the folder does not hold a model that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{folder} is not the folder of a causal language model: {error}") from None
    return {path: _shape(layer) for path, layer in _layers(model).items()}


def fits_model(folder: Path) -> Callable[[Adapter], Adapter]:
    """A check that adapters fit the layers of the model in this folder (dlp_core.adapter.fitting.fit) and know no other
    tokens, which returns them with its names.

    Raises InvalidRequest as `read_shapes`; the check raises AdapterRefused.
    """
    shapes, vocabulary = read_shapes(folder), read_vocabulary(folder)
    token_ids = None if vocabulary is None else frozenset(vocabulary.values())

    def check(adapter: Adapter) -> Adapter:
        if adapter.prompting is not None and vocabulary is not None:
            adapter.prompting.check(adapter.name, vocabulary)
        if token_ids is not None:
            check_spoken(adapter.name, adapter.invocation, token_ids)
        return fit(adapter, shapes)

    return check


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Module path to every layer that takes deltas. Raises ValueError if there is none."""
    layers = {path: module for path, module in model.named_modules() if _takes_deltas(path, module)}
    if not layers:
        raise ValueError("this model has no layers that adapters could change")
    return layers


def _op(
    model: nn.Module,
    device: torch.device,
    shapes: Mapping[str, LayerShape],
    groups: Collection[tuple[str, ...]],
    graphs: Graphs | None,
) -> Op:
    supported = (torch.float32, torch.bfloat16, torch.float16)  # not the dtypes of quantised weights
    dtype = next(p.dtype for p in model.parameters() if p.dtype in supported)
    if device.type != "cuda":
        from dlp_core.fusion.cpu import CpuOp

        return CpuOp(dtype)
    from dlp_core.fusion.triton import Limits, TritonOp

    if graphs is None:
        return TritonOp(device, dtype)
    widths = {path: shape.d_in for path, shape in shapes.items()}
    return TritonOp(device, dtype, Limits(graphs.tokens, graphs.slots, widths, groups))


def _to_host(parameter: Any) -> Tensor:
    return cast("Tensor", parameter.detach().float().cpu())


def _takes_deltas(path: str, module: nn.Module) -> bool:
    if "experts" in path.split("."):
        return False
    if isinstance(module, nn.LayerNorm):
        return module.bias is not None
    return isinstance(module, nn.Linear) or _is_conv1d(module) or _is_embedding(module)


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _is_embedding(module: nn.Module) -> bool:
    """Whether it looks up token or position ids: a plain embedding, or a subclass that only scales the result."""
    return type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))


def _shape(module: Any) -> LayerShape:
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.LayerNorm):
        width = int(module.normalized_shape[-1])
        return LayerShape(width, width, lora=False, bias=bias)
    if isinstance(module, nn.Embedding):
        return LayerShape(module.num_embeddings, module.embedding_dim, lora=True, bias=bias)
    if isinstance(module, nn.Linear):
        return LayerShape(module.in_features, module.out_features, lora=True, bias=bias)
    return LayerShape(int(module.nx), int(module.nf), lora=True, bias=bias)


def _siblings(path: str, layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    parent, _, name = path.rpartition(".")
    for names in _SHARED_INPUT:
        if name in names:
            return tuple(path for other in names if (path := f"{parent}.{other}") in layers)
    return (path,)
