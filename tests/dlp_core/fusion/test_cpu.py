"""The op for CPUs against the specification, in both implementations."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlp_core.fusion import cpu
from dlp_core.fusion.cpu import CpuOp
from dlp_core.fusion.reference import fused_lora
from dlp_core.fusion.segments import Segment
from tests.dlp_core.fusion.test_triton_random import PARTS, RANKS
from tests.support.op_bank import CPU, DECODE, GROUP, MIXED, PROMPTS, TOLERANCE, Bank, delta
from tests.support.tiny import relative_error

pytestmark = pytest.mark.usefixtures("each_cpu_implementation")


def bank(ranks: list[dict[str, int]], **options: object) -> Bank:
    torch.manual_seed(0)
    return Bank.random(ranks, device=CPU, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("segments", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_mixed_ranks_and_targets(dtype: torch.dtype, segments: tuple[Segment, ...]) -> None:
    op, adapters = CpuOp(dtype), bank(MIXED, dtype=dtype)
    adapters.check(op, segments, GROUP, dtype)
    adapters.check(op, segments, ("down_proj",), dtype)


@pytest.mark.parametrize("rank", range(1, 19))
def test_every_rank(rank: int) -> None:
    bank([{"q_proj": rank, "v_proj": 19 - rank}]).check(CpuOp(torch.float32), (Segment(2, ((0, 0.7),)),), GROUP)


@pytest.mark.parametrize("d_in", [1, 7, 31, 1100])
def test_every_width(d_in: int) -> None:
    bank([{"q_proj": 8}], d_in=d_in).check(CpuOp(torch.float32), (Segment(2, ((0, 0.7),)),), GROUP)


def test_trained_biases_with_and_without_lora() -> None:
    adapters = bank([{"q_proj": 4, "v_proj": 0}, {"q_proj": 0, "k_proj": 9}], biased=True)
    adapters.check(CpuOp(torch.float32), (Segment(1, ((0, 0.5), (1, 2.0))), Segment(2, ((1, -1.0),))), GROUP)


def test_a_slot_that_a_mix_names_twice_counts_twice() -> None:
    segments = (Segment(2, ((0, 0.5), (1, 1.0), (0, 0.75))),)
    bank([{"q_proj": 4}, {"q_proj": 2}]).check(CpuOp(torch.float32), segments, GROUP)


@given(
    segments=st.lists(st.builds(Segment, st.sampled_from([1, 1, 1, 2, 18]), PARTS), min_size=1, max_size=4).map(tuple),
    ranks=st.lists(RANKS, min_size=5, max_size=5),
    biased=st.booleans(),
    few=st.sampled_from([0, 10**9]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_batch_over_any_bank(
    segments: tuple[Segment, ...], ranks: list[dict[str, int]], biased: bool, few: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "MAX_KERNEL_PRODUCTS", few)
        torch.manual_seed(seed)
        Bank.random(ranks, biased=biased, device=CPU).check(CpuOp(torch.float32), segments, GROUP)


def test_adapters_are_added_replaced_and_removed_under_one_op() -> None:
    op, adapters = CpuOp(torch.float32), bank([{"q_proj": 4}, {"v_proj": 6}])
    both = (Segment(1, ((0, 1.0), (1, 0.5))), Segment(1, ((1, 1.0),)))
    adapters.check(op, both, GROUP)
    adapters.put(1, {"v_proj": delta(48, 40, 50, 2.0), "down_proj": delta(48, 64, 3, 1.0)})
    gc.collect()  # the adapter that was in slot 1 is gone, and its memory may be too
    adapters.check(op, both, GROUP)
    adapters.check(op, both, ("down_proj",))
    del adapters.residents[0]
    adapters.check(op, both[1:], GROUP)
    adapters.put(0, {"k_proj": delta(48, 24, 2, 1.0)})
    adapters.check(op, both, GROUP)


def test_a_layers_output_may_have_any_memory_layout() -> None:
    adapters = bank([{"q_proj": 4}])
    segments = (Segment(6, ((0, 1.0),)),)
    step = CpuOp(torch.float32).begin(segments, adapters.residents)
    assert step is not None
    x, y = torch.randn(48, 6).T, torch.randn(72, 6).T
    expected = fused_lora(y, x, segments, adapters.deltas["q_proj"])
    assert relative_error(step.add(y.clone(memory_format=torch.preserve_format), x, "q_proj", GROUP), expected) <= 1e-5


def test_a_layer_may_have_another_precision() -> None:
    adapters = bank([{"q_proj": 4, "v_proj": 9}], dtype=torch.bfloat16)
    segments = (Segment(3, ((0, 1.0),)),)
    step = CpuOp(torch.bfloat16).begin(segments, adapters.residents)
    assert step is not None
    x = torch.randn(3, 48)
    for path, width in (("q_proj", 72), ("v_proj", 40)):
        y = torch.randn(3, width)
        found = step.add(y.clone(), x, path, GROUP)
        assert found.dtype == torch.float32
        assert relative_error(found, fused_lora(y, x, segments, adapters.deltas[path])) <= 2e-2


def test_token_ids() -> None:
    adapters = Bank({}, {}, 30, CPU)
    adapters.put(0, {"embed": delta(30, 16, 6, 2.0)})
    adapters.put(1, {"embed": delta(30, 16, 11, 0.5)})
    segments = (Segment(2, ((0, 1.0), (1, 0.3))), Segment(1, ()), Segment(1, ((1, 1.0),)))
    ids, y = torch.tensor([3, 29, 0, 7]), torch.randn(4, 16)
    step = CpuOp(torch.float32).begin(segments, adapters.residents)
    assert step is not None
    found = step.add(y.clone()[None], ids[None], "embed", ("embed",))
    assert relative_error(found[0], fused_lora(y, ids, segments, adapters.deltas["embed"])) <= 1e-5


def test_a_layer_that_sees_more_tokens_than_the_batch_is_an_error() -> None:
    adapters = bank([{"q_proj": 4}])
    step = CpuOp(torch.float32).begin((Segment(3, ((0, 1.0),)),), adapters.residents)
    assert step is not None
    with pytest.raises(RuntimeError, match="a layer sees 4 tokens, the batch's segments cover 3"):
        step.add(torch.zeros(4, 72), torch.zeros(4, 48), "q_proj", GROUP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_round_as_torch_does(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bit pattern goes through an adapter that adds nothing, and through one that does not."""
    monkeypatch.setattr(cpu, "MAX_KERNEL_PRODUCTS", 10**9)
    y = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    adapters = Bank({}, {}, 4, CPU)
    for scaling in (0.0, 1.0):
        adapters.put(0, {"q_proj": delta(4, 2**16, 3, scaling)}, dtype)
        step = CpuOp(dtype).begin((Segment(1, ((0, 1.0),)),), adapters.residents)
        assert step is not None
        x = torch.eye(1, 4, dtype=dtype)
        found = step.add(y.clone()[None], x, "q_proj", ("q_proj",))[0]
        a_RD, b_RO, _ = adapters.residents[0].modules["q_proj"]
        expected = (y.float() + (a_RD[:, 0].float() @ b_RO.float()) * bool(scaling)).to(dtype)
        same = torch.eq(found, expected) | (found.isnan() & expected.isnan())
        assert same.float().mean() > (0.999 if scaling else 0.99999), "sums in another order may round differently"


def test_few_tokens_get_the_same_result_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MAX_KERNEL_PRODUCTS", 10**9)
    adapters = bank([{"q_proj": 8 + slot} for slot in range(5)], dtype=torch.bfloat16)
    random = np.random.default_rng(0)
    segments = [Segment(1, tuple((int(s), 0.4) for s in random.choice(5, 3, replace=False))) for _ in range(16)]
    x, y = torch.randn(16, 48).bfloat16(), torch.randn(16, 72).bfloat16()

    def run(rows: list[int]) -> torch.Tensor:
        step = CpuOp(torch.bfloat16).begin(tuple(segments[row] for row in rows), adapters.residents)
        assert step is not None
        return step.add(y[rows].clone(), x[rows], "q_proj", GROUP)

    together = run(list(range(16)))
    assert all(torch.equal(run([row])[0], together[row]) for row in range(16))
