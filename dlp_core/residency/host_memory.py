"""Adapters in host memory, packed as the device wants them: the tier between disk and slots.

At most so many bytes, the least recently used dropped first. Where there is a CUDA device the buffers are pinned, so
that the copy to it runs beside the computation. On a CPU the device is this memory: what is in a slot and in here is
one and the same buffer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from dlp_core.fusion.packed import Packed


class HostMemory:
    """Packed adapters by key. Use from any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._packed: OrderedDict[Hashable, Packed] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def get(self, key: Hashable) -> Packed | None:
        """What is kept of an adapter, and a note that it was used."""
        with self._lock:
            packed = self._packed.get(key)
            if packed is not None:
                self._packed.move_to_end(key)
            return packed

    def put(self, key: Hashable, packed: Packed) -> None:
        """Keeps an adapter, if it fits at all, and drops what was used least recently to make room."""
        with self._lock:
            if key in self._packed or packed.nbytes > self._max_bytes:
                return
            self._packed[key] = packed
            self._bytes += packed.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._packed.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._packed)
