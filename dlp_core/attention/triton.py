"""Attention on CUDA devices: our kernels over the paged cache, in place, with no mask and no repeated heads. Needs
triton.

A request that computes one token has its keys split among programs, as many as keep the device busy; the split's size
is in the plan, their number follows from the launch. Prompts go in tiles. The plan lies in a buffer that never moves,
copied before the pass without waiting for it. Up to `Limits.graph_tokens` tokens, one for each request, a pass is the
same launches whatever the requests' lengths, so that it can be captured into a CUDA graph.

Shape letters: those of `op`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from dlp_core.attention.batch import Batch, new_rows
from dlp_core.attention.op import Layer, Scores, States
from dlp_core.attention.triton_kernels import combine, decode, prefill, store

_TILE, _MIN_ROWS = 64, 16
"""Pairs of a token and a query head in a tile of `prefill`; the fewest that a product of blocks takes, and all that
float32, which Tensor Cores do not multiply, has registers for."""
_STAGES = 2
_PROGRAMS, _MAX_SPLITS = 264, 16
"""Programs that keep a device busy: two for each of an H100's processors."""


class Launch(NamedTuple):
    """How a kernel is compiled. Not measured on a GPU; chosen by what ptxas says: blocks take no more shared memory
    than any device since capability 8.0 has, and no registers spill (benchmarks/kernels.py)."""

    rows: int
    """Of a block: pairs of a token and a query head."""
    keys: int
    """Of a block."""
    warps: int


def prefill_launch(size: int, dtype: torch.dtype) -> Launch:
    """For heads of this size."""
    if dtype == torch.float32:
        return Launch(_MIN_ROWS, 16, 4)
    return Launch(_TILE, 64 if size <= 128 else 32, 8 if size > 64 else 4)


def decode_launch(size: int, dtype: torch.dtype, group: int) -> Launch:
    """For heads of this size, `group` query heads to a key head."""
    keys = 16 if dtype == torch.float32 else 64
    return Launch(max(_MIN_ROWS, triton.next_power_of_2(group)), keys, 4)


class Limits(NamedTuple):
    """Of a batch, so that its plan has a place."""

    requests: int
    tokens: int
    blocks: int
    """Of one request."""
    kinds: int
    """Of layers, by the pages they share."""
    group: int
    """Query heads of a key head."""


class _Places(NamedTuple):
    """Offsets in the plan."""

    singles: int
    """(token, tokens in the cache or -1 for none, row of the table) of each request that computes one token."""
    tiles: int
    """(first token, tokens, offset in its request, the request's tokens in the cache, row of the table)."""
    rows: int
    """Of each kind: the cache's row of each new token, or -1."""
    marks: int
    """Of each token, whether it overflowed."""
    tables: int
    """Of each kind: the page of each block."""
    size: int


class TritonAttention:
    """Attention of one model. One batch at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype, limits: Limits) -> None:
        """`dtype` is the model's."""
        self._limits = limits
        self._dtype = dtype
        self._at = _places(limits)
        self._host = torch.zeros(self._at.size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._plan = torch.zeros(self._at.size, dtype=torch.int32, device=device)
        self._tokens = self._singles = self._tiles = self._page_tokens = 0
        self._windows: list[int] = []

    def begin(self, batch: Batch) -> None:
        """The device must have finished the last pass."""
        singles, tiles, start = [], [], 0
        per_tile = self._tokens_of_a_tile
        for number, (past, tokens) in enumerate(batch.requests):
            if tokens == 1:
                singles.append((start, past, number))
            else:
                tiles += [
                    (start + offset, min(per_tile, tokens - offset), offset, past, number)
                    for offset in range(0, tokens, per_tile)
                ]
            start += tokens
        self._tokens, self._singles, self._tiles = start, len(singles), len(tiles)
        self._page_tokens = batch.page_tokens
        self._windows = [pages.window for pages in batch.pages]
        self._write(batch, singles, tiles)
        self._plan.copy_(self._host, non_blocking=True)

    def attend(self, layer: Layer, states: States, scores: Scores) -> Tensor:
        q_THD, k_TKD, v_TKD = (tensor.contiguous() for tensor in states)
        tokens, heads, size = q_THD.shape
        key_heads = k_TKD.shape[1]
        y_THD, at = torch.empty_like(q_THD), self._at
        sinks = q_THD if scores.sinks_H is None else scores.sinks_H
        table_at = at.tables + layer.kind * self._limits.requests * self._limits.blocks
        shared = {
            "SIZE": size, "SOFTCAP": scores.softcap is not None, "SINKS": scores.sinks_H is not None,
            "KEY_HEADS": key_heads, "GROUP": heads // key_heads, "PAGE": self._page_tokens,
            "WINDOW": self._windows[layer.kind], "BLOCK_D": triton.next_power_of_2(size),
        }  # fmt: skip
        scale, softcap = float(scores.scale), float(scores.softcap or 1.0)
        if self._tiles:
            launch = prefill_launch(size, self._dtype)
            rows = triton.next_power_of_2(self._tokens_of_a_tile * (heads // key_heads))
            prefill[self._tiles, key_heads](
                q_THD, k_TKD, v_TKD, y_THD, layer.keys_CKD, layer.values_CKD, sinks, self._plan, at.tiles, table_at,
                self._limits.blocks, scale, softcap, BLOCK_M=max(_MIN_ROWS, rows), BLOCK_L=launch.keys,
                num_warps=launch.warps, num_stages=_STAGES, **shared,
            )  # fmt: skip
        width = key_heads * size
        store[(tokens,)](
            k_TKD, v_TKD, layer.keys_CKD, layer.values_CKD, self._plan, at.rows + layer.kind * self._limits.tokens,
            at.marks, WIDTH=width, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip
        # Without prompts there is one request a token, and what is padded has none: the launch says nothing of them.
        requests = self._singles if self._tiles else tokens
        if requests:
            splits, launch = _splits(requests * key_heads), decode_launch(size, self._dtype, heads // key_heads)
            split = q_THD.new_empty(requests, heads, splits, size + 2, dtype=torch.float32) if splits > 1 else q_THD
            decode[requests, key_heads, splits](
                q_THD, y_THD, split, layer.keys_CKD, layer.values_CKD, sinks, self._plan, at.singles, table_at,
                self._limits.blocks, scale, softcap, SPLITS=splits, BLOCK_M=launch.rows, BLOCK_L=launch.keys,
                num_warps=launch.warps, num_stages=_STAGES, **shared,
            )  # fmt: skip
            if splits > 1:
                combine[requests, heads](
                    y_THD, split, sinks, self._plan, at.singles, HEADS=heads, SPLITS=splits,
                    **{name: shared[name] for name in ("SIZE", "SINKS", "BLOCK_D")},
                )  # fmt: skip
        return y_THD

    def overflowed(self) -> Tensor:
        return self._plan[self._at.marks : self._at.marks + self._tokens]

    @property
    def _tokens_of_a_tile(self) -> int:
        rows = _MIN_ROWS if self._dtype == torch.float32 else _TILE
        return max(1, rows // self._limits.group)

    def _write(self, batch: Batch, singles: Sequence[tuple[int, ...]], tiles: Sequence[tuple[int, ...]]) -> None:
        """Write the plan of a batch into host memory."""
        limits, at, plan = self._limits, self._at, self._host.numpy()
        plan[at.singles : at.tiles] = -1
        plan[at.rows : at.marks] = -1
        plan[at.marks : at.tables] = 0
        for start, found in ((at.singles, singles), (at.tiles, tiles)):
            if found:
                entries = np.array(found, np.int32).ravel()
                plan[start : start + entries.size] = entries
        tables = plan[at.tables : at.size].reshape(limits.kinds, limits.requests, limits.blocks)
        for kind, pages in enumerate(batch.pages):
            requests, blocks = pages.table_SB.shape
            tables[kind, :requests, :blocks] = pages.table_SB
            start = at.rows + kind * limits.tokens
            plan[start : start + self._tokens] = new_rows(batch, kind)


def _places(limits: Limits) -> _Places:
    sizes = (
        3 * limits.requests,
        5 * limits.tokens,
        limits.kinds * limits.tokens,
        limits.tokens,
        limits.kinds * limits.requests * limits.blocks,
    )
    return _Places(*(sum(sizes[:n]) for n in range(len(sizes) + 1)))


def _splits(programs: int) -> int:
    """In how many parts each request's keys are read: the more, the fewer programs there are without."""
    return min(_MAX_SPLITS, int(triton.next_power_of_2(max(1, _PROGRAMS // programs))))
