"""One model's weights in every form that is timed: plain, with fusion installed, and as the peers run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS, load_model, random_adapter, twin
from benchmarks.peers import is_installed
from benchmarks.peers.loop import factors, loop_model
from dlp_core.adapter.weights import Adapter
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment

ADAPTERS = 8
PEFT_MIX = {"a0": 0.5, "a1": 0.3, "a2": 0.2}

Pass = Callable[..., object]
"""A forward pass of the model given as the first argument; keyword arguments go to the model."""
Sides = dict[str, Callable[[], object]]


class Models:
    """The forms of one model and, after `load_adapters`, the same random adapters on each."""

    def __init__(self, folder: Path) -> None:
        self.plain = load_model(folder)
        self.fused = twin(self.plain)
        self.fusion = install(self.fused)
        self._has_peft = is_installed("peft")
        self._adapters: list[Adapter] = []
        self._peft: Any = None

    def load_adapters(self, targets: str, ranks: Sequence[int], *, peers: bool) -> None:
        """Make 8 adapters resident, cycling through `ranks`; with `peers`, also in PEFT's form of the model."""
        rank = [ranks[slot % len(ranks)] for slot in range(ADAPTERS)]
        make = partial(random_adapter, shapes=self.fusion.shapes, targets=TARGETS[targets])
        self._adapters = [make(f"a{slot}", rank=rank[slot], seed=slot) for slot in range(ADAPTERS)]
        for slot, adapter in enumerate(self._adapters):
            self.fusion.load(slot, adapter)
        self._peft = None
        if peers and self._has_peft:
            from benchmarks.peers.peft import Peft  # noqa: PLC0415

            with TemporaryDirectory() as root:
                folders = {adapter.name: Path(root) / adapter.name for adapter in self._adapters}
                for slot, folder in enumerate(folders.values()):
                    write_adapter(folder, self.fusion.shapes, targets=TARGETS[targets], rank=rank[slot], seed=slot)
                self._peft = Peft(self.plain, folders, PEFT_MIX)

    def peers(self, forward: Pass, segments: Sequence[Segment], rows: int) -> Sides:
        """The loop under these segments, and PEFT's sides for a batch of `rows` rows."""
        adapters = {slot: factors(adapter, torch.bfloat16) for slot, adapter in enumerate(self._adapters)}
        sides: Sides = {"loop": partial(forward, loop_model(self.plain, adapters, segments))}
        if self._peft is not None:
            sides |= self._peft.sides(partial(forward, self._peft.model), rows)
        return sides
