"""The op that learns a mix computes what is served, under weights of its own that gradients reach."""

import pytest
import torch

from dlp_core.fusion.learnt import LearntOp
from dlp_core.fusion.reference import Delta, fused_lora
from dlp_core.fusion.segments import Segment
from tests.support.op_bank import CPU, GROUP, Bank
from tests.support.tiny import relative_error

WEIGHTS = (0.7, -0.4)
SEGMENTS = (Segment(5, tuple(enumerate(WEIGHTS))),)
RANKS = [{"q_proj": 3, "v_proj": 2, "down_proj": 4}, {"q_proj": 8}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_specification(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    op = LearntOp(dtype, 2)
    with torch.no_grad():
        op.weights_K.copy_(torch.tensor(WEIGHTS))
    bank = Bank.random(RANKS, dtype=dtype, biased=biased, device=CPU)
    with torch.no_grad():
        bank.check(op, SEGMENTS, (*GROUP, "down_proj"), dtype)


MIXED = (
    Segment(2, ()),
    Segment(1, ((0, WEIGHTS[0]),)),
    Segment(3, tuple(enumerate(WEIGHTS))),
    Segment(1, ((1, WEIGHTS[1]),)),
)


def test_each_token_runs_under_the_adapters_of_its_segment() -> None:
    torch.manual_seed(0)
    op = LearntOp(torch.float32, 2)
    with torch.no_grad():
        op.weights_K.copy_(torch.tensor(WEIGHTS))
    bank = Bank.random(RANKS, biased=True, device=CPU)
    with torch.no_grad():
        bank.check(op, MIXED, (*GROUP, "down_proj"), torch.float32)


def test_the_output_head_sees_only_its_rows() -> None:
    torch.manual_seed(0)
    op = LearntOp(torch.float32, 2)
    with torch.no_grad():
        op.weights_K.copy_(torch.tensor(WEIGHTS))
    bank = Bank.random(RANKS, device=CPU)
    rows = [6, 0, 3]
    x_TD, y_TO = torch.randn(7, 48), torch.randn(7, 72)
    step = op.begin(MIXED, bank.residents, rows)
    assert step is not None
    found = step.add(y_TO[rows], x_TD[rows], "q_proj", ("q_proj",), head=True)
    assert relative_error(found.detach(), fused_lora(y_TO, x_TD, MIXED, bank.deltas["q_proj"])[rows]) <= 1e-5


def test_an_embedding_takes_token_ids() -> None:
    torch.manual_seed(0)
    op = LearntOp(torch.float32, 2)
    with torch.no_grad():
        op.weights_K.copy_(torch.tensor(WEIGHTS))
    bank = Bank.random(RANKS, device=CPU)
    ids_T, y_TO = torch.tensor([4, 0, 47, 4, 9]), torch.randn(5, 72)
    step = op.begin(SEGMENTS, bank.residents)
    assert step is not None
    found = step.add(y_TO.clone(), ids_T, "q_proj", ("q_proj",))
    assert relative_error(found.detach(), fused_lora(y_TO, ids_T, SEGMENTS, bank.deltas["q_proj"])) <= 1e-5


def test_the_gradient_of_a_weight_is_what_its_adapter_adds() -> None:
    torch.manual_seed(0)
    op = LearntOp(torch.float32, 3)
    bank = Bank.random(RANKS, device=CPU)
    x_TD, y_TO = torch.randn(5, 48), torch.randn(5, 72)
    step = op.begin(SEGMENTS, bank.residents)
    assert step is not None
    step.add(y_TO, x_TD, "q_proj", ("q_proj",)).sum().backward()
    assert op.weights_K.grad is not None

    def added(slot: int) -> float:
        one: dict[int, Delta] = {slot: bank.deltas["q_proj"][slot]}
        return float((fused_lora(y_TO, x_TD, (Segment(5, ((slot, 1.0),)),), one) - y_TO).sum())

    assert op.weights_K.grad.tolist() == pytest.approx([added(0), added(1), 0.0], rel=1e-3)


def test_a_batch_of_the_plain_backbone_needs_no_step() -> None:
    assert LearntOp(torch.float32, 1).begin((Segment(5, ()),), {}) is None
