"""PEFT on the same weights, in each of its ways to run LoRA adapters.

peft one       one adapter for the whole batch
peft rows      one adapter per row (`adapter_names`), never more
peft active    several adapters active for the whole batch as one mix (`set_adapter` with a list)
peft cat       the same mix merged into one adapter whose rank is the sum (`add_weighted_adapter`, "cat")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from benchmarks.measure.synthetic import twin
from dlp_core.quiet import quiet_transformers

Forward = Callable[..., object]
"""A forward pass of the model that accepts PEFT's keyword arguments."""


class Peft:
    """A model with adapters. The active adapters change when another side takes over, not at every pass."""

    def __init__(self, model: Any, folders: Mapping[str, Path], mix: Mapping[str, float]) -> None:
        """`mix` is the mix of the sides with several adapters."""
        (first, folder), *others = folders.items()
        with quiet_transformers():
            wrapped = PeftModel.from_pretrained(twin(model), folder, first, autocast_adapter_dtype=False)
            for name, other_folder in others:
                wrapped.load_adapter(other_folder, name, autocast_adapter_dtype=False)
        wrapped.add_weighted_adapter(list(mix), list(mix.values()), "merged", combination_type="cat")
        self.model: Any = wrapped.eval()
        self._names = tuple(folders)
        self._mix = mix
        self._layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
        self._active: Mapping[str, float] = {}

    def sides(self, forward: Forward, rows: int) -> dict[str, Callable[[], object]]:
        """All four sides, for a batch of `rows` rows. `forward` is a forward pass of `self.model`."""
        names = [self._names[row % len(self._names)] for row in range(rows)]
        return {
            "peft one": self._with_active({self._names[0]: 1.0}, forward),
            "peft rows": self._with_active(dict.fromkeys(self._names, 1.0), partial(forward, adapter_names=names)),
            "peft active": self._with_active(self._mix, forward),
            "peft cat": self._with_active({"merged": 1.0}, forward),
        }

    def _with_active(self, weights: Mapping[str, float], forward: Forward) -> Callable[[], object]:
        def call() -> object:
            if self._active is not weights:
                self._activate(weights)
            return forward()

        return call

    def _activate(self, weights: Mapping[str, float]) -> None:
        self.model.base_model.set_adapter(list(weights), inference_mode=True)
        for layer in self._layers:
            for name, weight in weights.items():
                layer.set_scale(name, weight)
        self._active = weights
