"""Random adapters and batches for tests of an op: `Bank.check` compares an op with the specification."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion.op import Op
from dlp_core.fusion.packed import Resident, pack, place
from dlp_core.fusion.reference import Delta, fused_lora
from dlp_core.fusion.segments import Segment
from tests.support.tiny import relative_error

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the op for CUDA devices is tested; without one, in triton's interpreter."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GROUP = ("q_proj", "k_proj", "v_proj")
WIDTHS = {"q_proj": 72, "k_proj": 24, "v_proj": 40, "down_proj": 64}


@dataclass
class Bank:
    """Random adapters in slots, in the form of the op and of the specification."""

    residents: dict[int, Resident]
    deltas: dict[str, dict[int, Delta]]
    d_in: int
    device: torch.device

    @classmethod
    def random(
        cls,
        ranks: list[dict[str, int]],
        *,
        d_in: int = 48,
        dtype: torch.dtype = torch.float32,
        biased: bool = False,
        device: torch.device = DEVICE,
    ) -> Bank:
        """`ranks[slot]` maps modules to ranks. Rank 0 with `biased` is a trained bias alone."""
        bank = cls({}, {}, d_in, device)
        for slot, modules in enumerate(ranks):
            adapter = {path: delta(d_in, WIDTHS[path], rank, 0.5 + slot, biased) for path, rank in modules.items()}
            bank.put(slot, adapter, dtype)
        return bank

    def put(self, slot: int, adapter: dict[str, Delta], dtype: torch.dtype = torch.float32) -> None:
        packed = pack(adapter, dict.fromkeys(adapter, self.d_in), dtype=dtype, pinned=self.device.type == "cuda")
        self.residents[slot] = place(packed, self.device)
        for deltas in self.deltas.values():
            deltas.pop(slot, None)
        for path, delta in adapter.items():
            self.deltas.setdefault(path, {})[slot] = delta

    def check(
        self, op: Op, segments: tuple[Segment, ...], paths: tuple[str, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        """Runs all modules of a group one after another, as a model's forward pass does."""
        step = op.begin(segments, self.residents)
        x_TD = torch.randn(sum(s.length for s in segments), self.d_in).to(dtype)
        x = x_TD.to(self.device)
        for path in paths:
            y_TO = torch.randn(len(x_TD), WIDTHS[path]).to(dtype)
            expected = fused_lora(y_TO, x_TD, segments, self.deltas.get(path, {}))
            actual = y_TO.to(self.device) if step is None else step.add(y_TO.clone().to(self.device), x, path, paths)
            assert actual.dtype == dtype
            assert relative_error(actual.cpu(), expected) <= TOLERANCE[dtype], (path, segments)
            plain = [t for s, t in zip(segments, _starts(segments), strict=True) if not s.parts for t in t]
            assert torch.equal(actual.cpu()[plain], y_TO[plain]), "rows without adapters keep every bit"


def delta(d_in: int, d_out: int, rank: int, scaling: float, biased: bool = False) -> Delta:
    lora = LoRAWeights(torch.randn(rank, d_in), torch.randn(d_out, rank), scaling) if rank else None
    return Delta(lora, torch.randn(d_out) if biased else None)


def _starts(segments: tuple[Segment, ...]) -> list[range]:
    ends = [sum(s.length for s in segments[: i + 1]) for i in range(len(segments))]
    return [range(end - s.length, end) for s, end in zip(segments, ends, strict=True)]


MIXED = [{"q_proj": 4, "v_proj": 2}, {"v_proj": 19}, {"q_proj": 16, "k_proj": 33}, {"q_proj": 1}, {"down_proj": 3}]
DECODE = (
    Segment(1, ((0, 1.0),)),
    Segment(1, ()),
    Segment(1, ((1, 0.3), (2, -0.7))),
    Segment(1, ((3, 0.5), (0, 0.2), (2, 1.3), (1, -2.0))),
    Segment(1, ((4, 1.0),)),
)
PROMPTS = (
    Segment(3, ((0, 1.0),)),
    Segment(2, ()),
    Segment(21, ((1, 0.3), (2, -0.7), (0, 0.4))),  # the mix changes inside a prompt, and a tile ends inside it
    Segment(5, ((2, 1.0),)),
    Segment(1, ((3, 0.5), (0, 0.2))),
)
