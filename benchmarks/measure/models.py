"""One model's weights in every form that takes turns: as they are, with fusion installed, and as peers run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS, load_model, random_adapter, twin
from benchmarks.peers import installed
from benchmarks.peers.loop import factors, looped
from dlp_core.adapter.weights import Adapter
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment

ADAPTERS = 8
PEFT_MIX = {"a0": 0.5, "a1": 0.3, "a2": 0.2}

Pass = Callable[..., object]
"""A forward pass of the model that is its first argument; keyword arguments go to the model."""
Sides = dict[str, Callable[[], object]]


class Models:
    """The forms of one model and, once they are held, some random adapters on each."""

    def __init__(self, folder: Path) -> None:
        self.plain = load_model(folder)
        self.fused = twin(self.plain)
        self.fusion = install(self.fused)
        self._has_peft = installed("peft")
        self._adapters: list[Adapter] = []
        self._peft: Any = None

    def hold(self, targets: str, ranks: Sequence[int], *, peers: bool) -> None:
        """Makes 8 adapters resident, the ranks in turn; with `peers`, in PEFT's form of the model too."""
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

    def peers(self, pass_: Pass, segments: Sequence[Segment], rows: int) -> Sides:
        """The loop under these mixes, and PEFT's sides for a batch of so many rows."""
        adapters = {slot: factors(adapter, torch.bfloat16) for slot, adapter in enumerate(self._adapters)}
        sides: Sides = {"loop": partial(pass_, looped(self.plain, adapters, segments))}
        if self._peft is not None:
            sides |= self._peft.sides(partial(pass_, self._peft.model), rows)
        return sides
