"""Brings packed adapters from the replica's process into the slots of vLLM's worker.

An adapter is checked and packed here, on a load thread. Its bytes go through a file in shared memory, which the worker
maps; the call that places it carries their description alone and runs between two steps.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import torch

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.fitting import fit
from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.packed import Packed, pack
from dlp_core.fusion.reference import Delta

Call = Callable[..., Coroutine[Any, Any, Any]]
"""Calls a method of every worker, by name, with arguments."""

_SHARED_MEMORY = Path("/dev/shm")


class RemoteDevice:
    """The slots of a vLLM engine, as a Residency moves adapters into them. `loop` is the engine's."""

    def __init__(
        self,
        call: Call,
        loop: asyncio.AbstractEventLoop,
        shapes: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
    ) -> None:
        self._call = call
        self._loop = loop
        self._shapes = {path: LayerShape(d_in, d_out, lora=True, bias=False) for path, (d_in, d_out) in shapes.items()}
        self._dtype = dtype

    def pack(self, adapter: Adapter) -> Packed:
        """Check an adapter and pack it. Safe on any thread. Raises AdapterRefused for what is not installed."""
        if adapter.biases or adapter.copies:
            what = "trained biases" if adapter.biases else "LoRA on embeddings or the output head"
            raise AdapterRefused(
                f"adapter {adapter.name!r} has {what}, which engine vllm does not serve; engine transformers does"
            )
        adapter = fit(adapter, self._shapes)
        deltas = {path: Delta(lora, None) for path, lora in adapter.modules.items()}
        try:
            return pack(deltas, {path: self._shapes[path].d_in for path in deltas}, dtype=self._dtype, pinned=False)
        except OverflowError as error:
            raise AdapterRefused(f"adapter {adapter.name!r}: {error}, which this server computes in") from None

    def place(self, slot: int, packed: Packed) -> int:
        """Put a packed adapter into a slot, replacing its content, and return once it is there. For load threads."""
        with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY, prefix="dlp-adapter-", delete=False) as file:
            file.write(packed.buffer.view(torch.uint8).numpy().data)
        work = self._call("dlp_place", slot, file.name, packed.buffer.numel(), [list(shape) for shape in packed.shapes])
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result()
        finally:
            Path(file.name).unlink(missing_ok=True)
        return packed.nbytes

    def unload(self, slot: int) -> None:
        """Empty a slot. Calls reach the workers in order, so a later `place` is not undone."""
        self._loop.create_task(self._call("dlp_unload", slot))
