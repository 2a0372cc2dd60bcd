"""The op for CUDA devices in CUDA graphs: one serves whatever mixes come after it was captured. On a GPU if there is
one, else the graphs are emulated and the kernels interpreted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from dlp_core.fusion import triton as op_module
from dlp_core.fusion.op import Part
from dlp_core.fusion.reference import fused_lora
from dlp_core.fusion.segments import Segment
from dlp_core.fusion.triton import MAX_RANK, Limits, TritonOp, TritonStep
from tests.support.cuda_graphs import Graph, Launch, captured, emulated_graphs
from tests.support.op_bank import DEVICE, GROUP, WIDTHS, Bank, delta
from tests.support.tiny import relative_error

pytestmark = pytest.mark.slow
emulated = pytest.mark.skipif(DEVICE.type != "cpu", reason="it looks into an emulated graph")

D = 48
SLOTS = 5
LIMITS = Limits(tokens=36, slots=SLOTS, modules=dict.fromkeys(WIDTHS, D), groups=(GROUP, ("down_proj",)))
RANKS = [{"q_proj": 4, "v_proj": 2}, {"v_proj": 19}, {"q_proj": 16, "k_proj": 33}, {"q_proj": 1}, {"down_proj": 3}]
NOTHING: tuple[Segment, ...] = ()
ALL = tuple((slot, 0.3 - 0.2 * slot) for slot in range(SLOTS))


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    with emulated_graphs(monkeypatch):
        yield


class Model:
    """Two layers as vLLM has them: q, k and v side by side in one output, and one that reads what they wrote."""

    def __init__(self, op: TritonOp, tokens: int) -> None:
        self.step: TritonStep | None = op.begin(NOTHING, {})
        self.x = torch.zeros(tokens, D, device=DEVICE)
        self.out = torch.zeros(tokens, WIDTHS["down_proj"], device=DEVICE)
        self.qkv = torch.randn(D, sum(WIDTHS[path] for path in GROUP)).to(DEVICE) / 7
        self.down = torch.randn(D, WIDTHS["down_proj"]).to(DEVICE) / 7

    def forward(self) -> None:
        assert self.step is not None
        y = self.x @ self.qkv
        x, start = self.x.view_as(self.x), 0
        for path in GROUP:
            part = y[:, start : start + WIDTHS[path]]
            assert self.step.add(part, x, path, GROUP) is part, "in place, among its neighbours"
            start += WIDTHS[path]
        h = torch.tanh(y[:, :D])
        self.out.copy_(self.step.add(h @ self.down, h, "down_proj", ("down_proj",)))

    def expected(self, segments: tuple[Segment, ...], bank: Bank) -> Tensor:
        x, y, start = self.x.cpu(), (self.x @ self.qkv).cpu(), 0
        for path in GROUP:
            part = y[:, start : start + WIDTHS[path]]
            part.copy_(fused_lora(part, x, segments, bank.deltas.get(path, {})))
            start += WIDTHS[path]
        h = torch.tanh(y[:, :D])
        return fused_lora(h @ self.down.cpu(), h, segments, bank.deltas.get("down_proj", {}))


def check(op: TritonOp, model: Model, graph: Any, segments: tuple[Segment, ...], bank: Bank) -> None:
    """What vLLM does in a step: enter the batch, fill the input, replay. The layers' own code does not run."""
    op.begin(segments, bank.residents)
    model.x.copy_(torch.randn_like(model.x))
    model.out.fill_(float("nan"))
    graph.replay()
    assert relative_error(model.out.cpu(), model.expected(segments, bank)) <= 1e-5, segments


def launches(model: Model) -> list[Launch]:
    graph = Graph()
    with graph.capture():
        model.forward()
    return graph.launches


def op_and_bank() -> tuple[TritonOp, Bank]:
    return TritonOp(DEVICE, torch.float32, LIMITS), Bank.random(RANKS, d_in=D)


def padded(tokens: int, *segments: Segment) -> tuple[Segment, ...]:
    return (*segments, Segment(tokens - sum(segment.length for segment in segments), ()))


def test_a_graph_captured_without_a_mix_serves_mixes_that_come_and_go() -> None:
    op, bank = op_and_bank()
    model = Model(op, 6)
    graph = captured(model.forward)
    check(op, model, graph, padded(6), bank)
    check(op, model, graph, padded(6, Segment(1, ((0, 1.0),)), Segment(1, ((1, 0.5), (2, -1.0)))), bank)
    check(op, model, graph, padded(6, Segment(1, ALL), Segment(1, ()), Segment(3, ((4, 2.0), (3, 1.0)))), bank)
    check(op, model, graph, padded(6, Segment(1, ((2, 1.0),))), bank)
    check(op, model, graph, padded(6), bank)
    check(op, model, graph, (Segment(6, ((0, 0.5), (2, 0.5))),), bank)


def test_a_graph_serves_adapters_that_take_the_places_of_others() -> None:
    op, bank = op_and_bank()
    model = Model(op, 3)
    graph = captured(model.forward)
    mixes = (Segment(1, ((0, 1.0), (4, 0.5))), Segment(1, ((1, -1.0),)), Segment(1, ()))
    check(op, model, graph, mixes, bank)
    before = bank.residents[0]
    bank.put(0, {"k_proj": delta(D, WIDTHS["k_proj"], 40, 1.0)})  # a larger rank, in a module it had not
    check(op, model, graph, mixes, bank)
    assert before is not bank.residents[0], "somebody may hold it still"
    del bank.residents[4]
    bank.deltas["down_proj"].clear()
    check(op, model, graph, (Segment(2, ((0, 1.0),)), Segment(1, ((1, 0.1),))), bank)
    bank.put(4, {"down_proj": delta(D, WIDTHS["down_proj"], 2, 1.0), "q_proj": delta(D, WIDTHS["q_proj"], 5, 2.0)})
    check(op, model, graph, mixes, bank)


def test_a_graph_serves_a_prompt_beside_sequences_that_decode() -> None:
    op, bank = op_and_bank()
    model = Model(op, 36)
    graph = captured(model.forward)
    decoding = [Segment(1, ((slot % SLOTS, 1.0),)) for slot in range(6)]
    prompt = (Segment(17, ((0, 0.5), (1, 0.5))), Segment(2, ()), Segment(5, ((2, 1.0),)))
    check(op, model, graph, padded(36, *decoding, *prompt), bank)
    check(op, model, graph, padded(36, *decoding, *decoding, *decoding), bank)


@pytest.mark.parametrize("tokens", [7, 36])
def test_more_tiles_and_parts_than_programs_are_done_one_after_the_other(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_module, "_TILES_AT_ONCE", 2)
    monkeypatch.setattr(op_module, "_PARTS_AT_ONCE", 2)
    op, bank = op_and_bank()
    model = Model(op, tokens)
    decoding = [Segment(1, ((slot, 1.0),)) for slot in range(SLOTS)]
    check(op, model, captured(model.forward), padded(tokens, Segment(1, ALL), *decoding), bank)


def test_one_adapter_of_the_highest_rank_is_served_by_a_graph_that_has_seen_none() -> None:
    op, bank = op_and_bank()
    model = Model(op, 2)
    graph = captured(model.forward)
    bank.put(3, {path: delta(D, WIDTHS[path], MAX_RANK, 0.1) for path in ("q_proj", "down_proj")})
    check(op, model, graph, (Segment(1, ((3, 1.0), (0, 1.0))), Segment(1, ((0, 1.0),))), bank)


@emulated
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_launches_depend_on_the_number_of_tokens_alone(tokens: int) -> None:
    """Whatever mixes and adapters are there when a graph is captured."""
    op, bank = op_and_bank()
    model = Model(op, tokens)
    plain = launches(model)
    assert [launch.kernel for launch in plain] == ["shrink", "expand", "expand", "expand", "shrink", "expand"]
    bank.put(1, {"q_proj": delta(D, WIDTHS["q_proj"], 200, 0.1)})
    for segments in (
        padded(tokens, Segment(1, ((0, 1.0),))),
        (Segment(tokens, ALL),),
        (Segment(1, ALL),) * tokens,
        (Segment(1, ((1, 1.0),)),) * tokens,
    ):
        model.step = op.begin(segments, bank.residents)
        assert launches(model) == plain, segments
    other = Model(op, tokens + 1)
    assert launches(other) != plain


def test_nothing_that_a_graph_reads_moves() -> None:
    op, bank = op_and_bank()
    before = op.table.rows.data_ptr(), op._plan.data_ptr()
    op.begin((Segment(1, ALL),) * LIMITS.tokens, bank.residents)
    op.begin((Segment(LIMITS.tokens + 9, ALL),), bank.residents)
    op.begin((Segment(LIMITS.tokens + 9, ()),), bank.residents)
    assert (op.table.rows.data_ptr(), op._plan.data_ptr()) == before


def test_passes_larger_than_any_graph_follow_their_own_plan() -> None:
    op, bank = op_and_bank()
    tokens = LIMITS.tokens + 4
    graph = captured((small := Model(op, 2)).forward)
    large = Model(op, tokens)
    for segments in (
        padded(tokens, Segment(20, ((0, 1.0), (2, 0.5))), Segment(1, ((1, 1.0),))),
        (Segment(tokens, ()),),
        (Segment(1, ((0, 1.0), (4, 0.5))),) * tokens,
    ):
        large.step = op.begin(segments, bank.residents)
        large.x.copy_(torch.randn_like(large.x))
        large.forward()
        assert relative_error(large.out.cpu(), large.expected(segments, bank)) <= 1e-5, segments
        check(op, small, graph, (Segment(1, ((0, 1.0),)), Segment(1, ())), bank)


def test_a_large_pass_without_mixes_leaves_no_plan_behind() -> None:
    """A pass that vLLM makes up, to try something, may come between two batches."""
    op, bank = op_and_bank()
    graph = captured((model := Model(op, 2)).forward)
    check(op, model, graph, (Segment(2, ((0, 1.0),)),), bank)
    op.begin((Segment(LIMITS.tokens + 1, ()),), {})
    graph.replay()
    assert torch.equal(model.out.cpu(), model.expected((Segment(2, ()),), bank))


def test_a_graph_captured_after_a_large_pass_without_mixes_serves_mixes() -> None:
    """vLLM measures its memory with the largest pass there is, and captures next."""
    op, bank = op_and_bank()
    large = Model(op, LIMITS.tokens + 4)
    large.step = op.begin((Segment(LIMITS.tokens + 4, ()),), {})
    large.forward()
    small = Model(op, 2)
    small.step = large.step
    check(op, small, captured(small.forward), (Segment(1, ((0, 1.0),)), Segment(1, ((2, 1.0),))), bank)


@pytest.mark.parametrize(("length", "rows"), [(1, [2, 0, 0]), (3, [8, 2, 0])])
def test_rows_of_the_output_head_change_between_replays(length: int, rows: list[int]) -> None:
    op, bank = op_and_bank()
    x, y = torch.zeros(3, D, device=DEVICE), torch.zeros(3, WIDTHS["down_proj"], device=DEVICE)
    segments = (Segment(length, ((0, 1.0),)), Segment(length, ()), Segment(length, ((4, -0.5), (0, 2.0))))
    step = op.begin((Segment(3 * length, ()),), {}, [0, 1, 2])
    assert step is not None
    graph = captured(lambda: step.add(y, x, "down_proj", ("down_proj",), head=True))
    every = [segment for segment in segments for _ in range(length)]
    for found in (rows, rows[::-1]):
        op.begin(segments, bank.residents, found)
        x.copy_(torch.randn(3, D))
        y.copy_(plain := torch.randn(3, WIDTHS["down_proj"]))
        graph.replay()
        chosen = tuple(Segment(1, every[row].parts) for row in found)
        expected = fused_lora(plain, x.cpu(), chosen, bank.deltas["down_proj"])
        assert relative_error(y.cpu(), expected) <= 1e-5, found


def test_a_pass_after_a_capture_reads_nothing_that_was_only_recorded() -> None:
    """Nor does the graph read what the pass before it computed."""
    op, bank = op_and_bank()
    segments = (Segment(1, ((0, 1.0),)),) * 3
    x, plain = torch.randn(3, D), torch.randn(3, WIDTHS["q_proj"])
    ours, y = x.clone().to(DEVICE), plain.clone().to(DEVICE)
    step = op.begin(segments, bank.residents)
    assert step is not None
    graph = captured(lambda: step.add(y, ours, "q_proj", GROUP))
    y.copy_(plain)
    step.add(y, ours, "q_proj", GROUP)
    assert relative_error(y.cpu(), fused_lora(plain, x, segments, bank.deltas["q_proj"])) <= 1e-5
    ours.copy_(x := torch.randn(3, D))
    y.copy_(plain)
    graph.replay()
    assert relative_error(y.cpu(), fused_lora(plain, x, segments, bank.deltas["q_proj"])) <= 1e-5


def test_what_is_beyond_the_limits_is_told_and_nothing_is_overwritten() -> None:
    op, bank = op_and_bank()
    bank.put(SLOTS, {"q_proj": delta(D, WIDTHS["q_proj"], 2, 1.0)})
    with pytest.raises(RuntimeError, match=f"slot {SLOTS} is beyond the table"):
        op.begin((Segment(1, ((SLOTS, 1.0),)),), bank.residents)
    bank.put(0, {"o_proj": delta(D, 8, 2, 1.0)})
    with pytest.raises(RuntimeError, match="module 'o_proj'"):
        op.begin((Segment(1, ((0, 1.0),)),), bank.residents)
    bank.put(1, {"q_proj": delta(D, WIDTHS["q_proj"], MAX_RANK + 2, 1.0)})
    with pytest.raises(RuntimeError, match=r"5 adapters.*rank 256"):
        op.begin((Segment(1, tuple((1, 0.1) for _ in range(SLOTS))),), bank.residents)
    with pytest.raises(RuntimeError, match="6 adapters"):
        op.begin((Segment(1, tuple((3, 0.1) for _ in range(SLOTS + 1))),), bank.residents)


@emulated
def test_a_batch_is_not_entered_inside_a_capture() -> None:
    op, bank = op_and_bank()
    with Graph().capture(), pytest.raises(RuntimeError, match="enter the batch before"):
        op.begin((Segment(1, ((0, 1.0),)),), bank.residents)


@emulated
def test_the_emulation_computes_nothing_while_it_captures() -> None:
    x, y = torch.ones(2), torch.ones(2)
    graph = Graph()
    with graph.capture():
        z = x * 3
        y.add_(z)
    assert z.isnan().all()
    assert y.tolist() == [1, 1]
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [7, 7]
    x.fill_(0)
    graph.replay()
    assert y.tolist() == [7, 7]


@emulated
@pytest.mark.parametrize(
    "forbidden",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x + torch.tensor([1.0, 2.0]), lambda x: bool(x[0] > 0)],
)
def test_the_emulation_refuses_what_a_capture_would(forbidden: Callable[[Tensor], Any]) -> None:
    x = torch.ones(2)
    with Graph().capture(), pytest.raises(RuntimeError, match="captur"):
        forbidden(x)


class Apart(Model):
    """As transformers has them: q, k and v are layers of their own, which say what they are going to compute."""

    def forward(self) -> None:
        assert self.step is not None
        parts, start = [], 0
        for path in GROUP:
            self.step.prepare(self.x, path, GROUP)
            y = self.x @ self.qkv[:, start : start + WIDTHS[path]]
            parts.append(self.step.add(y, self.x, path, GROUP))
            start += WIDTHS[path]
        h = torch.tanh(torch.cat(parts, 1)[:, :D])
        self.step.prepare(h, "down_proj", ("down_proj",))
        self.out.copy_(self.step.add(h @ self.down, h, "down_proj", ("down_proj",)))


def test_the_first_kernel_runs_beside_the_layers_own_product() -> None:
    op, bank = op_and_bank()
    model = Apart(op, 6)
    graph = captured(model.forward)
    check(op, model, graph, padded(6, Segment(1, ((0, 1.0),)), Segment(1, ((1, 0.5), (2, -1.0)))), bank)
    check(op, model, graph, padded(6, Segment(1, ALL), Segment(3, ((4, 2.0), (3, 1.0)))), bank)
    check(op, model, graph, padded(6), bank)


@emulated
def test_a_branch_that_is_not_joined_ends_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = op_and_bank()
    model = Apart(op, 6)
    model.forward()
    monkeypatch.setattr(op_module.Branch, "join", lambda self: None)
    with pytest.raises(RuntimeError, match="has not joined"), Graph().capture():
        model.forward()


@emulated
def test_outside_of_a_capture_nothing_is_launched_early() -> None:
    op, bank = op_and_bank()
    step = op.begin((Segment(2, ((0, 1.0),)),), bank.residents)
    assert step is not None
    x = torch.randn(2, D)
    step.prepare(x, "q_proj", GROUP)
    assert step._shrunk is None


class Merged(Model):
    """As vLLM has them, with one launch for q, k and v."""

    def forward(self) -> None:
        assert self.step is not None
        y = self.x @ self.qkv
        self.step.add_parts(y, self.x, PARTS, GROUP)
        h = torch.tanh(y[:, :D])
        self.out.copy_(h @ self.down)
        self.step.add_parts(self.out, h, [Part("down_proj", 0, WIDTHS["down_proj"])], ("down_proj",))


def parts_of(*paths: str) -> list[Part]:
    parts, end = [], 0
    for path in paths:
        parts.append(Part(path, end, end := end + WIDTHS[path]))
    return parts


PARTS = parts_of(*GROUP)


def test_modules_of_a_merged_layer_share_a_launch() -> None:
    op, bank = op_and_bank()
    model = Merged(op, 6)
    graph = captured(model.forward)
    check(op, model, graph, padded(6, Segment(1, ((0, 1.0),)), Segment(1, ((1, 0.5), (2, -1.0)))), bank)
    check(op, model, graph, padded(6, Segment(1, ALL), Segment(3, ((4, 2.0), (3, 1.0)))), bank)
    if DEVICE.type == "cpu":
        assert [launch.kernel for launch in launches(model)] == ["shrink", "expand", "shrink", "expand"]


@pytest.mark.parametrize("present", [("k_proj",), ("q_proj", "v_proj"), ("k_proj", "v_proj")])
def test_parts_of_a_merged_layer_that_no_adapter_may_change_are_left_alone(present: tuple[str, ...]) -> None:
    limits = LIMITS._replace(modules=dict.fromkeys(present, D), groups=(GROUP,))
    op, bank = TritonOp(DEVICE, torch.float32, limits), Bank.random([dict.fromkeys(present, 3)] * 2, d_in=D)
    segments = (Segment(1, ((0, 1.0), (1, -0.5))), Segment(4, ((1, 2.0),)))
    x, y = torch.randn(5, D), torch.randn(5, PARTS[-1].end)
    found = y.clone().to(DEVICE)
    step = op.begin(segments, bank.residents)
    assert step is not None
    step.add_parts(found, x.to(DEVICE), PARTS, GROUP)
    for part in PARTS:
        own = y[:, part.start : part.end]
        expected = fused_lora(own, x, segments, bank.deltas.get(part.path, {}))
        assert relative_error(found[:, part.start : part.end].cpu(), expected) <= 1e-5
