"""Mixes in vLLM's forward pass. The only file that touches vLLM's internals; it runs in vLLM's worker process.

    the layers     each linear layer's `quant_method.apply` is followed by one op of ours, dlp::add, which changes its
                   output in place; to torch.compile it is opaque
    the step       around the model's forward pass: which tokens run under which slots and weights
    the requests   a request's plan comes with its sampling parameters (plans.py) and is kept until it has finished

vLLM's own LoRA is off: it has one adapter and no weight a request, and turns compilation off on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.library import Library
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)
from vllm.v1.worker.cpu_worker import CPUWorker

from dlp_core.fusion.cpu import CpuOp
from dlp_core.fusion.op import Step
from dlp_core.fusion.packed import Packed, Resident, Shape, place
from dlp_core.fusion.segments import Segment
from dlp_core.vllm.plans import KEY, PLAIN, Spans


class _Part(NamedTuple):
    """A module of the model as adapters name it, within a layer of vLLM, which may hold several side by side."""

    path: str
    siblings: tuple[str, ...]
    start: int
    end: int


class _InFlight:
    """The forward pass that runs in this process. vLLM's layers call the op by the name of their layer alone."""

    step: ClassVar[Step | None] = None
    parts: ClassVar[dict[str, tuple[_Part, ...]]] = {}


def _add(y: Tensor, x: Tensor, layer: LayerNameType) -> None:
    step = _InFlight.step
    if step is None:
        return
    x = x.view_as(x)  # a new object: compiled code hands over the same one with other content
    for part in _InFlight.parts[_resolve_layer_name(layer)]:
        out = y if part.end - part.start == y.shape[-1] else y[..., part.start : part.end]
        result = step.add(out, x, part.path, part.siblings)
        if result is not out:
            out.copy_(result)


def _add_fake(y: Tensor, x: Tensor, layer: LayerNameType) -> None:
    return


_library = Library("dlp", "FRAGMENT")  # type: ignore[no-untyped-call]
direct_register_custom_op("add", _add, mutates_args=["y"], fake_impl=_add_fake, target_lib=_library)

_mixed_methods: dict[type, type] = {}


def _mixed(method: type) -> type:
    """A subclass of a layer's quant_method whose `apply` adds the mixed deltas."""
    if method not in _mixed_methods:

        def apply(self: Any, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
            y: Tensor = method.apply(self, layer, x, bias)  # type: ignore[attr-defined]
            torch.ops.dlp.add(y, x, layer.dlp_name)
            return y

        _mixed_methods[method] = type(f"Mixed{method.__name__}", (method,), {"apply": apply})
    return _mixed_methods[method]


def install(model: nn.Module, targets: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """Make every linear layer of `model` add mixed deltas, or those with a part named in `targets` (`q_proj`).

    Returns (inputs, outputs) of each module, by the path that adapters know. Raises ValueError if nothing matches, or
    for layers that are split over several processes.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    shapes: dict[str, tuple[int, int]] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, ColumnParallelLinear | RowParallelLinear):
            continue
        parent, _, name = path.rpartition(".")
        names = packed.get(name, [name])
        if targets is not None and not set(names) & set(targets):
            continue
        if layer.tp_size != 1:
            raise ValueError(f"{path} is split over {layer.tp_size} processes, which mixes do not support")
        sizes = getattr(layer, "output_sizes", None) or [layer.output_size]
        siblings = tuple(f"{parent}.{part}" for part in names)
        parts, start = [], 0
        for part, size in zip(siblings, sizes, strict=True):
            parts.append(_Part(part, siblings, start, start + size))
            shapes[part] = (layer.input_size, size)
            start += size
        _InFlight.parts[path] = tuple(parts)
        layer.dlp_name = _encode_layer_name(path)
        layer.requires_unquantized_input = True
        layer.quant_method.__class__ = _mixed(type(layer.quant_method))
    if not shapes:
        raise ValueError(f"the model has no linear layer named {', '.join(targets or ()) or 'at all'}")
    return shapes


class Mixes:
    """Mixed into a platform's worker class."""

    vllm_config: Any
    model_config: Any
    model_runner: Any

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)  # type: ignore[misc]
        runner = self.model_runner
        settings = self.vllm_config.additional_config.get(KEY, {})
        self._shapes = install(runner.get_model(), settings.get("targets"))
        self._op = CpuOp(self.model_config.dtype)
        self._residents: dict[int, Resident] = {}
        self._spans: dict[str, Spans] = {}
        forward = runner._model_forward

        def mixed_forward(input_ids: Any = None, positions: Any = None, *args: Any, **kwargs: Any) -> Any:
            with self._step(runner, int(positions.shape[-1])):
                return forward(input_ids, positions, *args, **kwargs)

        runner._model_forward = mixed_forward

    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.scheduled_new_reqs:
            extra = (request.sampling_params and request.sampling_params.extra_args) or {}
            self._spans[request.req_id] = Spans(extra[KEY]) if KEY in extra else PLAIN
        for request_id in scheduler_output.finished_req_ids:
            self._spans.pop(request_id, None)
        return super().execute_model(scheduler_output)  # type: ignore[misc]

    @contextmanager
    def _step(self, runner: Any, padded: int) -> Iterator[None]:
        batch = runner.input_batch
        count = batch.num_reqs
        starts = batch.num_computed_tokens_cpu[:count].tolist()
        ends = runner.query_start_loc.np[: count + 1].tolist()
        segments: list[Segment] = []
        for index, request_id in enumerate(batch.req_ids[:count]):
            spans = self._spans.get(request_id, PLAIN)  # dummy runs have requests nobody sent
            segments += spans.segments(starts[index], ends[index + 1] - ends[index])
        if padded > ends[-1]:
            segments.append(Segment(padded - ends[-1], ()))
        _InFlight.step = self._op.begin(tuple(segments), self._residents)
        try:
            yield
        finally:
            _InFlight.step = None

    # ---------------------------------------------------------------- called by the engine, between two steps

    def dlp_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each module that takes adapters."""
        return self._shapes

    def dlp_place(self, slot: int, path: str, elements: int, shapes: Sequence[Sequence[Any]]) -> None:
        """Put an adapter, packed in the file `path`, into a slot. The file is removed."""
        buffer = torch.from_file(path, shared=False, size=elements, dtype=self._op.dtype)
        Path(path).unlink()
        self._residents[slot] = place(Packed(buffer, tuple(Shape(*shape) for shape in shapes)), torch.device("cpu"))

    def dlp_unload(self, slot: int) -> None:
        self._residents.pop(slot, None)


class CpuMixWorker(Mixes, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, with mixes."""
