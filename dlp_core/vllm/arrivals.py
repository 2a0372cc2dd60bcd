"""Adapters on their way from host memory to a CUDA device, beside the steps that run there. Not yet run on one.

A thread copies: what vLLM's worker does between two steps, all sequences wait for. The mapped file is not pinned, and a
copy from it would keep the device waiting, so pieces of it go through two pinned buffers in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from dlp_core.fusion.packed import Packed, Resident, resident

COPYING = "copying"
"""A worker's answer while an adapter is not there yet."""

_PIECE = 2**24
"""Bytes of each of the two buffers."""


class _Staging(NamedTuple):
    buffer: Tensor
    copied: torch.cuda.Event
    """The last copy out of the buffer."""


class Arrivals:
    """For the thread of the worker that runs the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [
            _Staging(_pinned(_PIECE), torch.cuda.Event())  # type: ignore[no-untyped-call]
            for _ in range(2)
        ]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-copy")
        self._under_way: dict[int, Future[Resident]] = {}

    def start(self, slot: int, load: Callable[[], Packed]) -> None:
        """Begin to copy what `load` returns, on another thread, for this slot."""
        steps = torch.cuda.current_stream(self._device)
        self._under_way[slot] = self._thread.submit(self._copy, load, steps)

    def expects(self, slot: int) -> bool:
        """Whether an adapter for this slot has not been taken yet."""
        return slot in self._under_way

    def take(self, slot: int) -> Resident | None:
        """The adapter that is expected for this slot if it has arrived; the next step may read it. Until then None.
        Raises what kept it from arriving."""
        future = self._under_way[slot]
        if not future.done():
            return None
        del self._under_way[slot]
        return future.result()

    def _copy(self, load: Callable[[], Packed], steps: torch.cuda.Stream) -> Resident:
        packed = load()
        source = packed.buffer.view(torch.uint8)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            target = torch.empty(source.shape, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(steps)  # they may still read the adapter whose memory this was
            for start, staging in zip(range(0, len(source), _PIECE), cycle(self._staging), strict=False):
                staging.copied.synchronize()
                piece = source[start : start + _PIECE]
                target[start : start + _PIECE].copy_(staging.buffer[: len(piece)].copy_(piece), non_blocking=True)
                staging.copied.record()
            self._stream.synchronize()
        return resident(target.view(packed.buffer.dtype), packed.shapes)


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
