"""The op in vLLM's own layers, whole and split over processes: what the processes compute makes the module's output.

The processes are played one after another here; test_tensor_parallel.py has real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion.cpu import CpuOp
from dlp_core.fusion.packed import cut, pack, place
from dlp_core.fusion.reference import Delta, fused_lora
from dlp_core.fusion.segments import Segment
from tests.support.op_bank import CPU

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from dlp_core.vllm.seam.worker import _InFlight, install

pytestmark = pytest.mark.filterwarnings("ignore")  # those of vLLM are its own

HIDDEN, HEAD, HEADS, INNER = 32, 8, 8, 48
SEGMENTS = (Segment(1, ()), Segment(3, ((0, 0.7), (1, -0.4))), Segment(2, ((1, 1.5),)))
TOKENS = sum(segment.length for segment in SEGMENTS)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    _InFlight.step = None
    _InFlight.parts.clear()


class Group(NamedTuple):
    """What vLLM's layers ask of the group of processes that they are split over."""

    rank_in_group: int
    world_size: int


class Block(nn.Module):
    """A model of one block, as one of several processes has it. `fused`: its q, k, v and gate, up are one module each
    in adapters too, as in Phi-3."""

    def __init__(self, kv_heads: int, fused: bool) -> None:
        super().__init__()
        self.packed_modules_mapping = (
            {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}
            if fused
            else {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
        )
        self.qkv_proj = QKVParallelLinear(HIDDEN, HEAD, HEADS, kv_heads, bias=False)
        self.o_proj = RowParallelLinear(HEADS * HEAD, HIDDEN, bias=False)
        self.gate_up_proj = MergedColumnParallelLinear(HIDDEN, [INNER, INNER], bias=False)
        self.down_proj = RowParallelLinear(INNER, HIDDEN, bias=False)
        self.lm_head = ColumnParallelLinear(HIDDEN, INNER, bias=False)
        self.router = ReplicatedLinear(HIDDEN, 4, bias=False)


def widths(kv_heads: int) -> dict[str, tuple[int, int]]:
    return {
        "q_proj": (HIDDEN, HEADS * HEAD),
        "k_proj": (HIDDEN, kv_heads * HEAD),
        "v_proj": (HIDDEN, kv_heads * HEAD),
        "o_proj": (HEADS * HEAD, HIDDEN),
        "gate_proj": (HIDDEN, INNER),
        "up_proj": (HIDDEN, INNER),
        "down_proj": (INNER, HIDDEN),
        "lm_head": (HIDDEN, INNER),
    }


LAYERS = {
    "qkv_proj": {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
    "gate_up_proj": {0: "gate_proj", 1: "up_proj"},
    "o_proj": {None: "o_proj"},
    "down_proj": {None: "down_proj"},
    "lm_head": {None: "lm_head"},
}
"""vLLM's layers, and the weights that are loaded into their parts."""


def loaded(block: Block, weights: dict[str, Tensor]) -> Block:
    for name, parts in LAYERS.items():
        layer = getattr(block, name)
        for part, weight in parts.items():
            load = layer.weight.weight_loader
            load(layer.weight, weights[weight]) if part is None else load(layer.weight, weights[weight], part)
        layer.quant_method.process_weights_after_loading(layer)
    return block


def adapters(sizes: dict[str, tuple[int, int]], fused: bool) -> list[dict[str, Delta]]:
    """Two, of other ranks and on other modules, by the names that the model's adapters know."""
    if fused:
        kv = sizes["k_proj"][1]
        sizes = {
            "qkv_proj": (HIDDEN, HEADS * HEAD + 2 * kv),
            "gate_up_proj": (HIDDEN, 2 * INNER),
            **{name: sizes[name] for name in ("o_proj", "down_proj", "lm_head")},
        }

    def delta(d_in: int, d_out: int, rank: int) -> Delta:
        return Delta(LoRAWeights(torch.randn(rank, d_in), torch.randn(d_out, rank), 0.5))

    first = {f".{name}": delta(*size, 3) for name, size in sizes.items()}
    return [first, {path: delta(*sizes[path[1:]], 7) for path in list(first)[::2]}]


def outputs(block: Block, inputs: dict[str, Tensor], packed: list[Any]) -> dict[str, Tensor]:
    """What this process's layers put out, with mixes."""
    modules = install(block, None)
    cuts = {path: module.cut for path, module in modules.items() if module.cut is not None}
    residents = {slot: place(cut(adapter, cuts) if cuts else adapter, CPU) for slot, adapter in enumerate(packed)}
    _InFlight.step = CpuOp(torch.float32).begin(SEGMENTS, residents)
    found = {}
    for name in LAYERS:
        layer, x = getattr(block, name), inputs[name]
        if isinstance(layer, RowParallelLinear):
            x = x.chunk(layer.tp_size, dim=-1)[layer.tp_rank].contiguous()
        found[name] = layer.quant_method.apply(layer, x, None)
    return found


@pytest.mark.parametrize("fused", [False, True], ids=["parts", "fused"])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_what_the_processes_compute_makes_the_modules(
    processes: int, kv_heads: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(processes + kv_heads)
    sizes = widths(kv_heads)
    weights = {name: torch.randn(d_out, d_in) for name, (d_in, d_out) in sizes.items()}
    inputs = {name: torch.randn(TOKENS, sizes[next(iter(parts.values()))][0]) for name, parts in LAYERS.items()}
    deltas = adapters(sizes, fused)
    packed = [
        pack(one, {path: one[path].lora.a_RD.shape[1] for path in one}, dtype=torch.float32, pinned=False)  # type: ignore[union-attr]
        for one in deltas
    ]
    found = []
    with set_current_vllm_config(VllmConfig()):
        for rank in range(processes):
            monkeypatch.setattr(parallel_state, "_TP", Group(rank, processes))
            found.append(outputs(loaded(Block(kv_heads, fused), weights), inputs, packed))

    def whole(layer: str) -> list[Tensor]:
        """The outputs of the layer's parts, by the specification."""
        base = [inputs[layer] @ weights[part].T for part in LAYERS[layer].values()]
        if fused or len(base) == 1:
            slots = {slot: one[f".{layer}"] for slot, one in enumerate(deltas) if f".{layer}" in one}
            return list(
                fused_lora(torch.cat(base, 1), inputs[layer], SEGMENTS, slots).split([y.shape[1] for y in base], 1)
            )
        slots_of = [
            {slot: one[f".{part}"] for slot, one in enumerate(deltas) if f".{part}" in one}
            for part in LAYERS[layer].values()
        ]
        return [fused_lora(y, inputs[layer], SEGMENTS, slots) for y, slots in zip(base, slots_of, strict=True)]

    close = {"rtol": 1e-4, "atol": 1e-4}
    for layer in ("o_proj", "down_proj"):
        torch.testing.assert_close(sum(one[layer] for one in found), whole(layer)[0], **close)
    torch.testing.assert_close(torch.cat([one["lm_head"] for one in found], 1), whole("lm_head")[0], **close)
    gates, ups = zip(*(one["gate_up_proj"].chunk(2, dim=1) for one in found), strict=True)
    for ours, theirs in zip((gates, ups), whole("gate_up_proj"), strict=True):
        torch.testing.assert_close(torch.cat(ours, 1), theirs, **close)
    q, k, v = whole("qkv_proj")
    for rank, one in enumerate(found):
        heads = max(1, kv_heads // processes)
        first = rank * kv_heads // processes  # several processes have the same head where there are too few
        kv = slice(first * HEAD, (first + heads) * HEAD)
        expected = torch.cat([q.chunk(processes, 1)[rank], k[:, kv], v[:, kv]], 1)
        torch.testing.assert_close(one["qkv_proj"], expected, **close)


def test_sizes_are_those_of_the_whole_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_TP", Group(3, 4))
    with set_current_vllm_config(VllmConfig()):
        modules = install(Block(2, fused=False), None)
    assert {path: (module.d_in, module.d_out) for path, module in modules.items()} == {
        f".{name}": size for name, size in widths(2).items()
    }
    assert ".router" not in modules, "vLLM's LoRA does not reach it either"


class OtherSplit(MergedColumnParallelLinear):
    """A layer that may split its weight in a way of its own."""


def test_a_layer_that_is_split_in_an_unknown_way_takes_no_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    with set_current_vllm_config(VllmConfig()):
        for processes in (1, 2):
            monkeypatch.setattr(parallel_state, "_TP", Group(0, processes))
            block = Block(2, fused=False)
            block.gate_up_proj = OtherSplit(HIDDEN, [INNER, INNER], bias=False)
            assert (".gate_proj" in install(block, None)) == (processes == 1)
            block.gate_up_proj = MergedColumnParallelLinear(HIDDEN, [INNER, INNER, INNER], bias=False)
            assert ".gate_proj" not in install(block, None), "two names for three parts"


class OtherForward(RowParallelLinear):
    """A layer that may compute without its quant_method."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Attention(MLAAttention):
    """MLA attention, which reads the weight of its kv_b_proj and does not call it while it decodes."""

    def __init__(self, kv_b_proj: nn.Module) -> None:
        nn.Module.__init__(self)
        self.kv_b_proj = kv_b_proj


def test_a_layer_that_is_not_called_takes_no_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would change nothing, and nobody would be told."""
    monkeypatch.setattr(parallel_state, "_TP", Group(0, 1))
    with set_current_vllm_config(VllmConfig()):
        block = Block(2, fused=False)
        block.o_proj = OtherForward(HEADS * HEAD, HIDDEN, bias=False)
        block.kv_b_proj = ColumnParallelLinear(HIDDEN, INNER, bias=False)
        block.attention = Attention(block.kv_b_proj)
        modules = install(block, None)
    assert {".o_proj", ".kv_b_proj", "attention.kv_b_proj"}.isdisjoint(modules)
    assert ".down_proj" in modules


def test_only_targets_take_adapters_and_none_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_TP", Group(0, 1))
    with set_current_vllm_config(VllmConfig()):
        block = Block(2, fused=False)
        assert set(install(block, ["q_proj"])) == {".q_proj", ".k_proj", ".v_proj"}
        with pytest.raises(ValueError, match="no linear layer named nothing"):
            install(block, ["nothing"])


def test_the_op_is_opaque_to_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one node of the graph, which is the same under all mixes and none."""
    monkeypatch.setattr(parallel_state, "_TP", Group(0, 1))
    torch.manual_seed(0)
    weights = {name: torch.randn(d_out, d_in) for name, (d_in, d_out) in widths(2).items()}
    graphs: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with set_current_vllm_config(VllmConfig()):
        layer = loaded(block := Block(2, fused=False), weights).down_proj
        install(block, None)
    path, x = ".down_proj", torch.randn(TOKENS, INNER)
    deltas = {slot: one[path] for slot, one in enumerate(adapters(widths(2), False)) if path in one}
    residents = {
        slot: place(pack({path: delta}, {path: INNER}, dtype=torch.float32, pinned=False), CPU)
        for slot, delta in deltas.items()
    }
    compiled = torch.compile(lambda x: layer.quant_method.apply(layer, x, None), backend=capture, fullgraph=True)
    for segments in (SEGMENTS, SEGMENTS[::-1], (Segment(TOKENS, ()),)):
        _InFlight.step = CpuOp(torch.float32).begin(segments, residents)
        expected = fused_lora(x @ weights["down_proj"].T, x, segments, deltas)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    [graph] = graphs
    assert [node.target for node in graph.graph.nodes].count(torch.ops.dlp.add) == 1
