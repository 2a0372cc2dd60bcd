"""What tells the kernels of `triton` which tokens run under which mix: int32, copied to the device before each pass.

    [0]      how many tiles there are for the batch's tokens
    [1]      how many for the rows of the output head
    tiles    (first token, tokens, first part, parts, stride) of each; only tokens with a mix are in one
    heads    the same for the rows of the output head, one row a tile
    parts    (slot, weight as float32 bits) of each

Part k of a tile's mix has its columns of z from k * stride on: the stride is the largest rank in the mix. The sections
lie where `capacity`, the most tokens that the plan could be for, puts them, so kernels in a CUDA graph find them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlp_core.fusion.packed import Resident
from dlp_core.fusion.segments import Segment

_COUNTS = 2
_FIELDS = 5


class Places(NamedTuple):
    """Where the kernels find one kind of tiles, and the parts."""

    count_at: int
    tiles_at: int
    parts_at: int


class Plan(NamedTuple):
    """The plan of one batch, on the host."""

    data: NDArray[np.int32]
    """The counts alone if there are no tiles."""
    capacity: int
    tile: int
    tokens: int
    heads: int
    tiles: int
    parts: int
    """The most of one token."""
    rank: int
    """The largest of an adapter in use."""
    columns: int
    """Of z, that the widest mix needs."""


def places(capacity: int, *, head: bool) -> Places:
    parts_at = _COUNTS + 2 * _FIELDS * capacity
    return Places(1, _COUNTS + _FIELDS * capacity, parts_at) if head else Places(0, _COUNTS, parts_at)


def plan_size(capacity: int, parts: int) -> int:
    """Elements of the largest plan for `capacity` tokens of mixes of up to `parts` adapters."""
    return _COUNTS + 2 * _FIELDS * capacity + 2 * parts * capacity


def make_plan(
    segments: Sequence[Segment],
    residents: Mapping[int, Resident],
    head_rows: Sequence[int],
    *,
    tile: int,
    capacity: int,
) -> Plan:
    """Cut these segments into tiles of up to `tile` tokens. `residents` has the slots in use. `capacity` is at least
    the number of tokens and of `head_rows`."""
    tiles: list[tuple[int, int, int, int, int]] = []
    parts: list[tuple[int, float]] = []
    mixes: list[tuple[int, int, int]] = []
    """(first part, parts, stride) of each token."""
    for segment in segments:
        start = len(mixes)
        stride = max((residents[slot].rank for slot, _ in segment.parts), default=0)
        mix = (len(parts), len(segment.parts), stride)
        mixes += [mix] * segment.length
        if stride:
            parts += segment.parts
            tiles += [(at, min(tile, len(mixes) - at), *mix) for at in range(start, len(mixes), tile)]
    heads = [(row, 1, *mixes[token]) for row, token in enumerate(head_rows) if mixes[token][2]]
    assert max(len(mixes), len(head_rows)) <= capacity
    return Plan(
        _lay_out(tiles, heads, parts, capacity) if parts else np.zeros(_COUNTS, np.int32),
        capacity=capacity,
        tile=tile,
        tokens=len(mixes),
        heads=len(head_rows),
        tiles=len(tiles),
        parts=max((mix[1] for mix in mixes), default=0),
        rank=max((mix[2] for mix in mixes), default=0),
        columns=max((mix[1] * mix[2] for mix in mixes), default=0),
    )


def _lay_out(
    tiles: Sequence[tuple[int, ...]],
    heads: Sequence[tuple[int, ...]],
    parts: Sequence[tuple[int, float]],
    capacity: int,
) -> NDArray[np.int32]:
    parts_at = places(capacity, head=False).parts_at
    data = np.zeros(parts_at + 2 * len(parts), np.int32)
    data[:_COUNTS] = len(tiles), len(heads)
    for found, head in ((tiles, False), (heads, True)):
        at = places(capacity, head=head).tiles_at
        data[at : at + _FIELDS * len(found)] = np.array(found, np.int32).ravel()
    slots, weights = zip(*parts, strict=True)
    data[parts_at::2] = slots
    data[parts_at + 1 :: 2] = np.array(weights, np.float32).view(np.int32)
    return data
