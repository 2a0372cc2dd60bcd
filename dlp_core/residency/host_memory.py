"""Adapters in host memory, packed in the device's layout: the tier between disk and slots.

Bounded in bytes; the least recently used is dropped first. With a CUDA device the buffers are pinned, so that the copy
overlaps with computation. On a CPU this memory is the device: a slot and the cache share one buffer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from dlp_core.fusion.packed import Packed


class HostMemory:
    """An LRU cache of packed adapters by key. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._packed: OrderedDict[Hashable, Packed] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def get(self, key: Hashable) -> Packed | None:
        """Return a cached adapter and mark it as used, or return None."""
        with self._lock:
            packed = self._packed.get(key)
            if packed is not None:
                self._packed.move_to_end(key)
            return packed

    def put(self, key: Hashable, packed: Packed) -> None:
        """Cache an adapter, if it fits at all, and drop the least recently used ones to make room."""
        with self._lock:
            if key in self._packed or packed.host_bytes > self._max_bytes:
                return
            self._packed[key] = packed
            self._bytes += packed.host_bytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._packed.popitem(last=False)[1].host_bytes

    def __len__(self) -> int:
        return len(self._packed)
