"""What several processes have of a packed adapter is, together, the adapter."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion.packed import Cut, cut, pack, place
from dlp_core.fusion.reference import Delta
from tests.support.op_bank import CPU

IN, OUT = 24, 36


def lora(d_in: int, d_out: int, rank: int) -> Delta:
    return Delta(LoRAWeights(torch.randn(rank, d_in), torch.randn(d_out, rank), 0.5))


@given(ranks=st.tuples(st.integers(1, 19), st.integers(1, 19)), processes=st.sampled_from([1, 2, 3]))
def test_outputs_lie_side_by_side_and_inputs_add_up(ranks: tuple[int, int], processes: int) -> None:
    deltas = {"column": lora(IN, OUT, ranks[0]), "row": lora(OUT, IN, ranks[1]), "whole": lora(IN, OUT, 3)}
    packed = pack(deltas, {"column": IN, "row": OUT, "whole": IN}, dtype=torch.float32, pinned=False)
    whole = place(packed, CPU).modules
    step, half = OUT // processes, OUT // processes // 2
    parts = []
    for process in range(processes):
        first = process * half  # of both halves of the outputs: as layers of two parts are split
        outputs = ((first, first + half), (OUT // 2 + first, OUT // 2 + first + half))
        cuts = {
            "column": Cut((0, IN), outputs),
            "row": Cut((process * step, (process + 1) * step), ((0, IN),)),
        }
        parts.append(place(cut(packed, cuts), CPU).modules)
    columns = [part["column"].b_RO for part in parts]
    sides = [torch.cat([b_RO[:, :half] for b_RO in columns], 1), torch.cat([b_RO[:, half:] for b_RO in columns], 1)]
    assert torch.equal(torch.cat(sides, 1), whole["column"].b_RO)
    assert torch.equal(torch.cat([part["row"].a_RD for part in parts], 1), whole["row"].a_RD)
    for part in parts:
        assert torch.equal(part["column"].a_RD, whole["column"].a_RD)
        assert torch.equal(part["row"].b_RO, whole["row"].b_RO)
        assert torch.equal(part["whole"].a_RD, whole["whole"].a_RD)
        assert torch.equal(part["whole"].b_RO, whole["whole"].b_RO)
