"""The op for CUDA devices against the specification: on a GPU if there is one, else in triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.weights import read_adapter
from dlp_core.fusion import layers
from dlp_core.fusion import triton as op_module
from dlp_core.fusion.layers import install
from dlp_core.fusion.reference import fused_lora
from dlp_core.fusion.segments import Segment
from dlp_core.fusion.triton import Limits, TritonOp
from tests.dlp_core.fusion.test_model_families import IDS, MIX, bank, with_peft
from tests.support.families import FAMILIES
from tests.support.op_bank import DECODE, DEVICE, GROUP, MIXED, PROMPTS, TOLERANCE, Bank, delta
from tests.support.tiny import WHOLE_MODEL, relative_error

pytestmark = pytest.mark.slow


def new_op(dtype: torch.dtype = torch.float32) -> TritonOp:
    torch.manual_seed(0)
    return TritonOp(DEVICE, dtype)


@pytest.mark.parametrize("segments", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_mixed_ranks_and_targets(dtype: torch.dtype, segments: tuple[Segment, ...]) -> None:
    op = new_op(dtype)
    adapters = Bank.random(MIXED, dtype=dtype)
    adapters.check(op, segments, GROUP, dtype)
    adapters.check(op, segments, ("down_proj",), dtype)


@pytest.mark.parametrize("length", [1, 3], ids=["decode", "prompts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wide_layers_are_summed_in_parts(dtype: torch.dtype, length: int) -> None:
    op = new_op(dtype)
    adapters = Bank.random([{"q_proj": 3, "k_proj": 18}, {"q_proj": 7}], d_in=1100, dtype=dtype)
    step = op.begin((Segment(length, ((0, 0.5), (1, 0.5))),), adapters.residents)
    assert step is not None
    step.add(torch.zeros(length, 72, device=DEVICE), torch.zeros(length, 1100, device=DEVICE), "q_proj", GROUP)
    assert step._shrunk is not None
    assert step._shrunk.splits > 1
    adapters.check(op, (Segment(length, ((0, 0.5), (1, 0.5))), Segment(1, ((1, -1.0),))), GROUP, dtype)


@pytest.mark.parametrize("length", [1, 17], ids=["decode", "prompts"])
@pytest.mark.parametrize("parts", range(1, 9))
def test_up_to_eight_adapters_for_a_token(parts: int, length: int) -> None:
    adapters = Bank.random([{"q_proj": 1 + slot} for slot in range(8)])
    mix = tuple((slot, 0.3 + slot) for slot in range(parts))
    adapters.check(new_op(), (Segment(length, mix), Segment(1, mix[-1:])), GROUP)


@pytest.mark.parametrize("length", [1, 4])
def test_a_slot_that_a_mix_names_twice_counts_twice(length: int) -> None:
    adapters = Bank.random([{"q_proj": 4}, {"q_proj": 2}])
    adapters.check(new_op(), (Segment(length, ((0, 0.5), (1, 1.0), (0, 0.75))),), GROUP)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("rank", [0, 5, 16])
def test_trained_biases(rank: int, length: int) -> None:
    adapters = Bank.random([{"q_proj": rank}, {"q_proj": rank, "k_proj": 3}], biased=True, d_in=600)
    adapters.check(new_op(), (Segment(length, ((0, 0.5), (1, -2.0))), Segment(1, ((1, 1.0),))), GROUP)


def test_a_batch_without_adapters_has_no_step() -> None:
    assert new_op().begin((Segment(3, ()), Segment(1, ())), {}) is None


def test_modules_no_adapter_changes_are_left_alone() -> None:
    step = new_op().begin((Segment(1, ((0, 1.0),)),), Bank.random([{"q_proj": 2}]).residents)
    assert step is not None
    y = torch.randn(1, 24)
    assert step.add(y, torch.randn(1, 48), "k_proj", GROUP) is y


def test_leading_dimensions_and_strides() -> None:
    adapters = Bank.random([{"q_proj": 4}])
    segments = (Segment(2, ((0, 1.0),)), Segment(1, ((0, 0.5),)))
    x, y = torch.randn(1, 48, 3).mT, torch.randn(1, 3, 72)
    assert not x.is_contiguous()
    step = new_op().begin(segments, adapters.residents)
    assert step is not None
    found = step.add(y.clone().to(DEVICE), x.to(DEVICE), "q_proj", GROUP)
    assert found.shape == y.shape
    assert relative_error(found[0].cpu(), fused_lora(y[0], x[0], segments, adapters.deltas["q_proj"])) <= 1e-5


@pytest.mark.parametrize(("length", "rows"), [(1, [2, 0]), (1, [2, 0, 1]), (2, [5, 2, 1, 0])])
def test_rows_of_the_output_head(length: int, rows: list[int]) -> None:
    """In any order, some of them unused, or as many as there are tokens, as the engine requests them."""
    adapters = Bank.random([{"q_proj": 4}, {"q_proj": 9}])
    segments = (Segment(length, ((0, 1.0),)), Segment(length, ()), Segment(length, ((1, -0.5), (0, 2.0))))
    step = new_op().begin(segments, adapters.residents, rows)
    assert step is not None
    every, x, y = [s for s in segments for _ in range(s.length)], torch.randn(len(rows), 48), torch.randn(len(rows), 72)
    chosen = tuple(Segment(1, every[row].parts) for row in rows)
    found = step.add(y.clone().to(DEVICE), x.to(DEVICE), "q_proj", ("q_proj",), head=True)
    assert relative_error(found.cpu(), fused_lora(y, x, chosen, adapters.deltas["q_proj"])) <= 1e-5
    with pytest.raises(RuntimeError, match="sees 7 tokens"):
        step.add(torch.randn(7, 72), torch.randn(7, 48), "q_proj", GROUP)


@pytest.mark.parametrize("length", [1, 4])
def test_embeddings_take_token_ids(length: int) -> None:
    adapters = Bank.random([{"q_proj": 3}, {"q_proj": 18}], biased=True)
    segments = (Segment(length, ((0, 0.5), (1, 2.0))), Segment(2, ()), Segment(1, ((1, 1.0),)))
    ids, y = torch.randint(0, 48, (length + 3,)), torch.randn(length + 3, 72)
    step = new_op().begin(segments, adapters.residents)
    assert step is not None
    found = step.add(y.clone().to(DEVICE), ids[None].to(DEVICE), "q_proj", ("q_proj",))
    assert relative_error(found.cpu(), fused_lora(y, ids, segments, adapters.deltas["q_proj"])) <= 1e-5


def test_replaced_adapters_and_growing_tables() -> None:
    op = new_op()
    adapters = Bank.random([{"q_proj": 4}, {"q_proj": 2}])
    mix = (Segment(1, ((0, 1.0), (1, 0.5))),)
    adapters.check(op, mix, GROUP)
    before = adapters.residents[0]
    adapters.put(0, {"q_proj": delta(48, 72, 6, 3.0)})
    assert before is not adapters.residents[0]
    adapters.check(op, mix, GROUP)
    adapters.put(1, {"v_proj": delta(48, 40, 50, 2.0)})  # another module, a larger rank, and q_proj no longer changed
    adapters.check(op, mix, GROUP)
    adapters.put(300, {"down_proj": delta(48, 64, 2, 1.0)})
    grown = (Segment(1, ((0, 1.0), (1, 0.5), (300, 2.0))),)
    with torch.inference_mode():
        adapters.check(op, grown, ("down_proj",))
    adapters.put(1, {"v_proj": delta(48, 40, 3, 2.0)})
    adapters.check(op, grown, GROUP)
    with pytest.raises(KeyError):
        op.begin((Segment(1, ((7, 1.0),)),), adapters.residents)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
@torch.no_grad()
def test_a_whole_model_equals_peft(name: str, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the op for CPUs, which this one is compared with, needs it")
    pytest.importorskip("peft", reason="it makes the adapters and is what the model is compared with")
    family = FAMILIES[name]
    folders = bank(family, tmp_path, bias="all")
    model = family.build().to(DEVICE)
    fusion = install(model, TritonOp(DEVICE, torch.float32))
    reference = install(mixed := family.build())
    for slot, folder in enumerate(folders):
        for each in (fusion, reference):
            each.load(slot, read_adapter(folder, name=folder.name))
    ids = IDS.to(DEVICE)
    with fusion.batch((Segment(13, ((1, 1.0),)),)):
        found = model(ids).logits.cpu()
    assert relative_error(found, with_peft(family, folders[1])(IDS).logits) <= WHOLE_MODEL
    segments = (Segment(6, MIX), Segment(3, ()), Segment(4, ((2, 1.0),)))
    kept = torch.tensor([5, 12, 0])
    with fusion.batch(segments, kept.tolist()), reference.batch(segments, kept.tolist()):
        found = model(ids, logits_to_keep=kept.to(DEVICE)).logits.cpu()
        assert relative_error(found, mixed(IDS, logits_to_keep=kept).logits) <= WHOLE_MODEL


def test_the_device_chooses_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the op for CPUs needs it")
    family = FAMILIES["llama"]
    assert type(install(family.build())._op).__name__ == "CpuOp"
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(op_module, "TritonOp", lambda *args: made.append(args))
    shapes = {"q_proj": LayerShape(32, 48, lora=True, bias=False)}
    arguments = family.build(dtype=torch.bfloat16), torch.device("cuda"), shapes, {("q_proj",)}
    layers._op(*arguments, None)
    assert made.pop() == (torch.device("cuda"), torch.bfloat16)
    layers._op(*arguments, layers.Graphs(tokens=8, slots=3))
    assert made == [(torch.device("cuda"), torch.bfloat16, Limits(8, 3, {"q_proj": 32}, {("q_proj",)}))]
