"""Mixes in vLLM's forward pass. It runs in vLLM's worker process. cpu_worker.py and gpu_worker.py say what is of one
platform alone.

    the layers     each linear layer's `quant_method.apply` is followed by one op of ours, dlp::add, which changes its
                   output in place; to torch.compile it is opaque
    the step       around the model's forward pass: which tokens run under which slots and weights
    the requests   a request's plan comes with its sampling parameters (plans.py) and is kept until it has finished

vLLM's own LoRA is off: it has one adapter and no weight a request, and turns compilation off on CPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.library import Library
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)

from dlp_core.fusion.op import Op, Part, Step
from dlp_core.fusion.packed import Cut, Packed, Resident, Shape, cut
from dlp_core.fusion.segments import Segment
from dlp_core.vllm.plans import KEY, PLAIN, Spans

log = logging.getLogger(__name__)


class _InFlight:
    """The forward pass that runs in this process. vLLM's layers call the op by the name of their layer alone."""

    step: ClassVar[Step | None] = None
    """Between two batches, that of an empty one: on a GPU it launches, because graphs are captured then."""
    parts: ClassVar[dict[str, tuple[Part, ...]]] = {}
    """Of each layer: the modules in it, as adapters name them."""


def _add(y: Tensor, x: Tensor, layer: LayerNameType) -> None:
    step = _InFlight.step
    if step is None:
        return
    parts = _InFlight.parts[_resolve_layer_name(layer)]
    step.add_parts(y, x, parts, tuple(part.path for part in parts))


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


class Module(NamedTuple):
    """A module of the model as adapters name it: its size, and what of it this process computes (None: all)."""

    d_in: int
    d_out: int
    cut: Cut | None


_LAYERS = (ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear)


def _is_known(layer: Any) -> bool:
    """Whether a layer calls its quant_method, and is split over processes as its class says. Subclasses, of which some
    models have their own, may do neither."""
    computes_as_known = type(layer).forward in [known.forward for known in _LAYERS]
    return computes_as_known and (layer.tp_size == 1 or type(layer) in _LAYERS)


def install(model: nn.Module, targets: Sequence[str] | None) -> dict[str, Module]:
    """Make every linear layer of `model` add mixed deltas, or those with a part named in `targets` (`q_proj`).

    Returns the modules that take adapters now, by the path that adapters know. Those of a layer are missing, so that
    adapters on them are refused, if vLLM reads its weight without calling it, or if its class computes or splits it in
    an unknown way. Raises ValueError if nothing is left.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    never_called = {module.kv_b_proj for module in model.modules() if isinstance(module, MLAAttention)}
    modules: dict[str, Module] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, ColumnParallelLinear | RowParallelLinear) or layer in never_called:
            continue
        parent, _, name = path.rpartition(".")
        names = packed.get(name, [name])
        if targets is not None and not set(names) & set(targets):
            continue
        outputs = _outputs(layer)
        if len(names) not in (1, len(outputs)) or not _is_known(layer):
            log.warning("%s takes no adapters: what %s does is not known", path, type(layer).__name__)
            continue
        siblings = tuple(f"{parent}.{part}" for part in names)
        parts, end = [], 0
        for part, shares in zip(siblings, [outputs] if len(names) == 1 else [[one] for one in outputs], strict=True):
            start, d_out, ranges = end, 0, []
            for share in shares:
                ranges.append((d_out + share.start, d_out + share.end))
                d_out += share.width
                end += share.end - share.start
            parts.append(Part(part, start, end))
            cut = Cut(_inputs(layer), tuple(ranges)) if layer.tp_size > 1 else None
            modules[part] = Module(layer.input_size, d_out, cut)
        _InFlight.parts[path] = tuple(parts)
        layer.dlp_name = _encode_layer_name(path)
        layer.requires_unquantized_input = True
        layer.quant_method.__class__ = _mixed(type(layer.quant_method))
    if not modules:
        raise ValueError(f"the model has no linear layer named {', '.join(targets or ()) or 'at all'}")
    return modules


class _Share(NamedTuple):
    """A part of a layer's output: its width in all processes together, and the range of it that this one has."""

    width: int
    start: int
    end: int


def _outputs(layer: Any) -> list[_Share]:
    """The parts of a layer's output, in their order."""
    if isinstance(layer, RowParallelLinear):
        return [_Share(layer.output_size, 0, layer.output_size)]
    shares = []
    for number, width in enumerate(layer.output_partition_sizes):
        # several processes have the same heads where there are fewer of keys and values than processes
        replicas = layer.num_kv_head_replicas if isinstance(layer, QKVParallelLinear) and number else 1
        start = layer.tp_rank // replicas * width
        shares.append(_Share(width * layer.tp_size // replicas, start, start + width))
    return shares


def _inputs(layer: Any) -> tuple[int, int]:
    """The range of a layer's input that this process multiplies."""
    first = layer.tp_rank * layer.input_size_per_partition if isinstance(layer, RowParallelLinear) else 0
    return first, first + layer.input_size_per_partition


class Mixes:
    """Mixed into a platform's worker class."""

    vllm_config: Any
    model_config: Any
    model_runner: Any
    use_v2_model_runner: bool

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)  # type: ignore[misc]
        self._settings = self.vllm_config.additional_config.get(KEY, {})
        self._modules = install(self.model_runner.get_model(), self._settings.get("targets"))
        self._op = self._new_op()
        self._residents: dict[int, Resident] = {}
        self._spans: dict[str, Spans] = {}
        self._executing = False
        self._leave()
        (self._follow_v2 if self.use_v2_model_runner else self._follow_v1)(self.model_runner)

    def execute_model(self, scheduler_output: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._spans.pop(request_id, None)
        for request in scheduler_output.scheduled_new_reqs:
            extra = (request.sampling_params and request.sampling_params.extra_args) or {}
            self._spans[request.req_id] = Spans(extra[KEY]) if KEY in extra else PLAIN
        self._executing = True
        try:
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        finally:
            self._executing = False
            if self.use_v2_model_runner:
                self._leave()

    def _new_op(self) -> Op:
        """The platform's."""
        raise NotImplementedError

    def _arrive(self, slot: int, packed: Packed) -> str | None:
        """Put a mapped adapter into a slot, or begin to; what `dlp_place` answers."""
        raise NotImplementedError

    def _follow_v1(self, runner: Any) -> None:
        """Enter each batch around the forward pass. Passes that vLLM makes up do not come this way."""
        forward = runner._model_forward

        def mixed_forward(input_ids: Any = None, positions: Any = None, *args: Any, **kwargs: Any) -> Any:
            batch = runner.input_batch
            count = batch.num_reqs
            starts = batch.num_computed_tokens_cpu[:count]
            self._enter(batch.req_ids[:count], starts, runner.query_start_loc.np, int(positions.shape[-1]))
            try:
                return forward(input_ids, positions, *args, **kwargs)
            finally:
                self._leave()

        runner._model_forward = mixed_forward

    def _follow_v2(self, runner: Any) -> None:
        """Enter each batch when its inputs are prepared: a captured pass calls nothing of Python's. `execute_model`
        leaves it. Passes that vLLM makes up come this way too, but not through the worker."""
        state = runner.model_state
        prepare = state.prepare_inputs

        def prepare_mixed_inputs(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if self._executing:
                starts, ends = batch.num_computed_tokens_np, batch.query_start_loc_np
                self._enter(batch.req_ids, starts, ends, int(batch.num_tokens_after_padding))
            return prepare(batch, *args, **kwargs)

        state.prepare_inputs = prepare_mixed_inputs

    def _enter(self, request_ids: Sequence[str], computed: Any, query_starts: Any, padded: int) -> None:
        """Begin the step of these requests: request i has computed[i] tokens already, and its next ones are the batch's
        from query_starts[i] to query_starts[i + 1]."""
        starts, ends = computed.tolist(), query_starts[: len(request_ids) + 1].tolist()
        segments: list[Segment] = []
        for index, request_id in enumerate(request_ids):
            segments += self._spans[request_id].segments(starts[index], ends[index + 1] - ends[index])
        if padded > ends[-1]:
            segments.append(Segment(padded - ends[-1], ()))
        _InFlight.step = self._op.begin(tuple(segments), self._residents)

    def _leave(self) -> None:
        """Begin the step of no batch. Layers that run outside of one, an image's for example, add nothing."""
        _InFlight.step = self._op.begin((), {})

    def _mine(self, packed: Packed) -> Packed:
        """This process's part of an adapter."""
        cuts = {path: module.cut for path, module in self._modules.items() if module.cut is not None}
        return cut(packed, cuts) if cuts else packed

    # ---------------------------------------------------------------- called by the engine, between two steps

    def dlp_max_rank(self) -> int | None:
        """The highest rank of an adapter that it takes; None for any."""
        return self._op.max_rank

    def dlp_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each module that takes adapters, in all processes together."""
        return {path: (module.d_in, module.d_out) for path, module in self._modules.items()}

    def dlp_place(self, slot: int, path: str, elements: int, shapes: Sequence[Sequence[Any]]) -> str | None:
        """Put an adapter, packed in the file `path`, into a slot: this process's part of it.

        Returns None when it is there, COPYING if `dlp_placed` will say when, or what went wrong. An exception would be
        worse: vLLM would not wait for the other workers, and take their answers for those to its next call.
        """
        try:
            buffer = torch.from_file(path, shared=False, size=elements, dtype=self._op.dtype)
            return self._arrive(slot, Packed(buffer, tuple(Shape(*shape) for shape in shapes)))
        except Exception as error:
            log.exception("slot %d was not loaded", slot)
            return f"{type(error).__name__}: {error}"

    def dlp_unload(self, slot: int) -> None:
        self._residents.pop(slot, None)
