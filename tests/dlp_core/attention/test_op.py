"""Attention ops against the definition: batches of every kind, and chains of passes over one cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dlp_core.attention import reference
from dlp_core.attention.batch import Batch, Pages, Request
from dlp_core.attention.op import AttentionOp, Layer, Scores, States
from tests.support.op_bank import DEVICE

try:  # a machine with a GPU may have no numba, others no triton
    from dlp_core.attention.cpu import CpuAttention
except ImportError:
    CpuAttention = None
try:
    from dlp_core.attention.triton import Limits, TritonAttention
except ImportError:
    TritonAttention = None

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest difference to the largest number."""


BLOCKS = 64
KINDS = ("plain", "softcap", "sinks", "both")
WINDOWS = (0, 6, 16)


needs_numba = pytest.mark.skipif(CpuAttention is None, reason="the op for CPUs needs numba")


def triton_op(device: torch.device, group: int) -> AttentionOp:
    if TritonAttention is None:
        pytest.skip("the extra `gpu` is not installed")
    return TritonAttention(device, torch.float32, Limits(requests=8, tokens=128, blocks=BLOCKS, kinds=1, group=group))


class Cache:
    """A cache of one layer, filled at random, and requests with pages anywhere in it."""

    def __init__(
        self,
        seed: int,
        dtype: torch.dtype,
        *,
        heads: int,
        key_heads: int,
        size: int,
        page_tokens: int,
        window: int,
        device: torch.device | None = None,
    ) -> None:
        self._device = device
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self._heads, self._key_heads, self._size = dtype, heads, key_heads, size
        self._page_tokens, self._window = page_tokens, window
        self._blocks: dict[str, list[int]] = {}
        self._free = list(range(BLOCKS))
        self._random.shuffle(self._free)
        rows = BLOCKS * page_tokens
        self.layer = Layer(0, self.normal(rows, key_heads), self.normal(rows, key_heads))

    def normal(self, tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, self._size, generator=self._generator).to(self._device, self._dtype)

    def batch(self, requests: Sequence[tuple[str, int, int]]) -> Batch:
        """A batch of (name, past, tokens)."""
        for name, past, tokens in requests:
            own, slots = self._blocks.setdefault(name, []), past + tokens
            needed = -(-(min(slots, self._window) if self._window else slots) // self._page_tokens)
            own += [self._free.pop() for _ in range(needed - len(own))]
        table = np.full((len(requests), max(len(self._blocks[name]) for name, *_ in requests)), 10**6, np.int32)
        for row, (name, *_) in zip(table, requests, strict=True):
            row[: len(self._blocks[name])] = self._blocks[name]
        asked = [Request(past, tokens) for _, past, tokens in requests]
        return Batch(asked, [Pages(table, self._window)], self._page_tokens)

    def states(self, tokens: int) -> States:
        k_TKD, v_TKD = self.normal(tokens, self._key_heads), self.normal(tokens, self._key_heads)
        return States(self.normal(tokens, self._heads), k_TKD, v_TKD)


def close(found: Tensor, expected: Tensor) -> bool:
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= TOLERANCE[found.dtype] * expected.float().abs().max())


def check(op: AttentionOp, cache: Cache, requests: Sequence[tuple[str, int, int]], scores: Scores) -> None:
    """One pass by the op equals one by the definition, what it stores included."""
    batch = cache.batch(requests)
    states = cache.states(sum(tokens for *_, tokens in requests))
    own = Layer(0, cache.layer.keys_CKD.clone(), cache.layer.values_CKD.clone())
    expected = reference.attend(batch, own, states, scores)
    op.begin(batch)
    found = op.attend(cache.layer, states, scores)
    assert close(found, expected)
    assert torch.equal(cache.layer.keys_CKD, own.keys_CKD)
    assert torch.equal(cache.layer.values_CKD, own.values_CKD)
    assert not op.overflowed().any()
    assert len(op.overflowed()) == len(states.q_THD)


def scores_of(kind: str, heads: int) -> Scores:
    sinks = torch.linspace(-2, 2, heads)
    return {
        "plain": Scores(0.4),
        "softcap": Scores(0.4, softcap=3.0),
        "sinks": Scores(0.4, sinks_H=sinks),
        "both": Scores(0.4, softcap=3.0, sinks_H=sinks),
    }[kind]


def check_chains(
    name: str,
    make: Callable[[int], AttentionOp],
    dtype: torch.dtype,
    kind: str,
    window: int,
    *,
    seeds: int,
    steps: int,
    device: torch.device | None = None,
) -> None:
    """Passes that decode, and passes that also have prompts, one after another over the same caches."""
    rng = random.Random(name)
    for seed in range(seeds):
        key_heads, group, page = rng.choice([1, 2, 3]), rng.choice([1, 3, 4]), rng.choice([4, 8, 32])
        heads, size = key_heads * group, rng.choice([8, 20, 64])
        cache = Cache(
            seed, dtype, heads=heads, key_heads=key_heads, size=size, page_tokens=page, window=window, device=device
        )
        op = make(group)
        past = {f"r{n}": 0 for n in range(rng.randint(2, 5))}
        for step in range(steps):
            running = rng.sample(sorted(past), rng.randint(1, len(past)))
            requests = [(one, past[one], 1 if step % 2 else rng.choice([1, 1, 2, 7, 19])) for one in running]
            check(op, cache, requests, scores_of(kind, heads))
            for ran, _, tokens in requests:
                past[ran] += tokens


@needs_numba
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_op_for_cpus_equals_the_definition(dtype: torch.dtype, kind: str, window: int) -> None:
    check_chains(f"{kind} {window}", lambda _: CpuAttention(dtype), dtype, kind, window, seeds=6, steps=6)


@pytest.mark.parametrize(
    ("dtype", "kind", "window"),
    [
        *((torch.float32, kind, window) for kind in KINDS for window in WINDOWS),
        (torch.float16, "both", 16),
        pytest.param(
            torch.bfloat16, "both", 0,
            marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="Triton's interpreter cannot multiply bfloat16"),
        ),
    ],
)  # fmt: skip
def test_the_op_for_cuda_devices_equals_the_definition(dtype: torch.dtype, kind: str, window: int) -> None:
    check_chains(
        f"{kind} {window}", lambda group: triton_op(DEVICE, group), dtype, kind, window,
        seeds=1 if DEVICE.type == "cpu" else 8, steps=4, device=DEVICE,
    )  # fmt: skip


@needs_numba
def test_a_request_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, and whatever is in their pages."""
    cache = Cache(0, torch.float32, heads=6, key_heads=2, size=16, page_tokens=4, window=0)
    for name, tokens in (("a", 9), ("b", 5), ("c", 14)):
        check(CpuAttention(torch.float32), cache, [(name, 0, tokens)], Scores(0.25))
    op = CpuAttention(torch.float32)
    alone, together = cache.batch([("b", 5, 1)]), cache.batch([("a", 9, 1), ("b", 5, 1), ("c", 14, 1)])
    q, k, v = cache.states(3)
    op.begin(alone)
    expected = op.attend(cache.layer, States(q[1:2], k[1:2], v[1:2]), Scores(0.25))
    for row in (together.pages[0].table_SB[0], together.pages[0].table_SB[2]):
        for block in row[row < 64]:
            cache.layer.keys_CKD[4 * block : 4 * block + 4] = float("nan")
    k[0], v[2] = float("inf"), float("nan")
    op.begin(together)
    found = op.attend(cache.layer, States(q, k, v), Scores(0.25))
    assert torch.equal(found[1:2], expected)
    assert op.overflowed().bool().tolist() == [True, False, True]
    assert not found[0].isfinite().all()
