"""Brings packed adapters from the replica's process into the slots of vLLM's worker.

An adapter is checked and packed here, on a load thread. Its bytes go through a file in memory, which the workers map;
the call that places it carries their description alone and runs between two steps.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import torch

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.fitting import fit
from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.packed import Packed, pack
from dlp_core.fusion.reference import Delta
from dlp_core.vllm.arrivals import COPYING

_LOOK_S = 0.005
"""Between two looks whether a copy has arrived; each is a call between two steps."""

Call = Callable[..., Coroutine[Any, Any, Any]]
"""Calls a method of every worker, by name, with arguments."""


class RemoteDevice:
    """The slots of a vLLM engine, as a Residency moves adapters into them. `loop` is the engine's."""

    def __init__(
        self,
        call: Call,
        loop: asyncio.AbstractEventLoop,
        shapes: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        *,
        targets: Sequence[str] | None = None,
        max_rank: int | None = None,
    ) -> None:
        """`shapes` are (inputs, outputs) of each module that takes adapters, because it is one of `targets` or they are
        None. Adapters are packed in `dtype`; those above `max_rank` are refused."""
        self._call = call
        self._loop = loop
        self._shapes = {path: LayerShape(d_in, d_out, lora=True, bias=False) for path, (d_in, d_out) in shapes.items()}
        self._dtype = dtype
        self._targets = targets
        self._max_rank = max_rank
        self._names = {_name(path) for path in shapes}

    def pack(self, adapter: Adapter) -> Packed:
        """Check an adapter and pack it. Safe on any thread. Raises AdapterRefused for what is not installed."""
        if adapter.biases or adapter.copies:
            what = "trained biases" if adapter.biases else "LoRA on embeddings or the output head"
            raise AdapterRefused(
                f"adapter {adapter.name!r} has {what}, which engine vllm does not serve; engine transformers does"
            )
        names = {_name(path) for path in adapter.modules} - self._names
        if self._targets is not None and names:
            raise AdapterRefused(
                f"adapter {adapter.name!r} targets {', '.join(sorted(names))}, and engine.vllm.targets has "
                f"{', '.join(self._targets)} alone; list them there, or leave targets out to serve all linear layers"
            )
        adapter = fit(adapter, self._shapes, max_rank=self._max_rank)
        deltas = {path: Delta(lora, None) for path, lora in adapter.modules.items()}
        try:
            return pack(deltas, {path: self._shapes[path].d_in for path in deltas}, dtype=self._dtype, pinned=False)
        except OverflowError as error:
            raise AdapterRefused(f"adapter {adapter.name!r}: {error}, which this server computes in") from None

    def place(self, slot: int, packed: Packed) -> int:
        """Put a packed adapter into a slot, replacing its content, and return once it is there. For load threads."""
        # without a name, so that it goes when the last process has closed it, whatever ends them
        with os.fdopen(os.memfd_create("adapter"), "wb") as file:
            file.write(packed.buffer.view(torch.uint8).numpy().data)
            file.flush()
            path, shapes = f"/proc/{os.getpid()}/fd/{file.fileno()}", [list(shape) for shape in packed.shapes]
            answers = self._answers("dlp_place", slot, path, packed.buffer.numel(), shapes)
            errors = _errors(answers)
            while COPYING in answers:
                time.sleep(_LOOK_S)
                answers = self._answers("dlp_placed", slot)
                errors += _errors(answers)
        if errors:
            raise RuntimeError(errors[0])
        return packed.nbytes

    def _answers(self, method: str, *args: Any) -> list[str | None]:
        """Of all workers."""
        answers: list[str | None] = asyncio.run_coroutine_threadsafe(self._call(method, *args), self._loop).result()
        return answers

    def unload(self, slot: int) -> None:
        """Empty a slot. Calls reach the workers in order, so a later `place` is not undone."""
        self._loop.create_task(self._call("dlp_unload", slot))


def _errors(answers: Sequence[str | None]) -> list[str]:
    return [answer for answer in answers if answer not in (None, COPYING)]


def _name(path: str) -> str:
    return path.rpartition(".")[2]
