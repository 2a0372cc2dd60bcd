"""The op for CUDA devices: any batch over any bank. Separate from test_triton.py, which does not need hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from dlp_core.fusion.segments import Segment
from tests.dlp_core.fusion.test_triton import new_op
from tests.support.op_bank import GROUP, Bank

pytestmark = pytest.mark.slow

SLOTS = st.integers(0, 4)
PARTS = st.lists(st.tuples(SLOTS, st.floats(-3, 3, width=32)), max_size=4).map(tuple)
RANKS = st.dictionaries(st.sampled_from(GROUP), st.sampled_from([1, 2, 7, 8, 15, 16, 17, 40]))


@given(
    segments=st.lists(st.builds(Segment, st.sampled_from([1, 1, 1, 2, 18]), PARTS), min_size=1, max_size=4).map(tuple),
    ranks=st.lists(RANKS, min_size=5, max_size=5),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_batch_over_any_bank(
    segments: tuple[Segment, ...], ranks: list[dict[str, int]], biased: bool, seed: int
) -> None:
    op = new_op()
    torch.manual_seed(seed)
    Bank.random(ranks, biased=biased).check(op, segments, GROUP)
