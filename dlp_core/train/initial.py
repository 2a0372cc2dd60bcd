"""Begin a training with the weights of an adapter: to go on with other rows, or to make an ordinary adapter an
activated one in a few steps.

It must be what the training would make: factors of the same rank and scaling on the same modules of the same base
model. What it had of an optimizer is not in its folder, so that begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlp_core.adapter.base_names import BaseNames, Naming, folder_name
from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.fitting import fit
from dlp_core.adapter.weights import Adapter, LoRAWeights, read_adapter
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layers import read_shapes
from dlp_core.store.files import digest_of


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Created by `read`."""

    name: str
    digest: str
    """Of the adapter, as banks have it."""
    modules: Mapping[str, LoRAWeights]
    """By their paths in the base model."""

    @classmethod
    def read(cls, folder: Path, base: Path, *, rank: int, alpha: float, targets: Collection[str]) -> InitialWeights:
        """The weights of the PEFT folder `folder`, for an adapter of this rank, alpha and targets on the model folder
        `base`.

        Raises AdapterRefused for a folder that holds no adapter which could be served, and for one that does not fit
        the base model; InvalidRequest, naming what differs, for another one than is trained.
        """
        adapter = read_adapter(folder, name=folder.resolve().name, hashed=True)
        shapes = read_shapes(base)
        own = folder_name(base)
        if BaseNames(own).naming(adapter.base_model) is Naming.OTHER:
            raise _differs(folder, f"it was trained on {adapter.base_model!r}, and the base model is {own!r}")
        adapter = fit(adapter, shapes)
        if adapter.biases or adapter.copies:
            raise _differs(folder, "it has biases or base weights beside its LoRA factors, which are not trained here")
        _check(folder, adapter, rank=rank, alpha=alpha, expected=set(_targeted(shapes, targets)), targets=targets)
        return cls(adapter.name, digest_of(adapter.files), adapter.modules)

    @torch.no_grad()
    def load_into(self, model: Any) -> None:
        """Copy them into a PEFT model with one LoRA adapter on the same modules."""
        from peft.tuners.lora.layer import LoraLayer

        layers = {
            name.removeprefix("base_model.model."): layer
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        assert layers.keys() == self.modules.keys()
        for path, weights in self.modules.items():
            [a], [b] = layers[path].lora_A.values(), layers[path].lora_B.values()
            a.weight.copy_(weights.a_RD)
            b.weight.copy_(weights.b_OR)


def _check(
    folder: Path, adapter: Adapter, *, rank: int, alpha: float, expected: set[str], targets: Collection[str]
) -> None:
    ranks = {weights.rank for weights in adapter.modules.values()}
    if ranks != {rank}:
        raise _differs(folder, f"its rank is {_shown(ranks)}, and --rank is {rank}")
    alphas = {round(weights.scaling * rank, 6) for weights in adapter.modules.values()}
    if alphas != {round(alpha, 6)}:
        raise _differs(folder, f"its alpha is {_shown(alphas)}, and --alpha is {alpha:g}")
    if adapter.modules.keys() != expected:
        names = {path.rpartition(".")[2] for path in adapter.modules}
        if names != set(targets):
            raise _differs(folder, f"its targets are {_shown(names)}, and --targets are {_shown(targets)}")
        raise _differs(
            folder, f"it changes {len(adapter.modules)} modules, and --targets name {len(expected)} of the base model"
        )


def _targeted(shapes: Mapping[str, LayerShape], targets: Collection[str]) -> Iterator[str]:
    """The modules that PEFT adapts for such a list of targets."""
    for path, shape in shapes.items():
        if shape.lora and any(path == target or path.endswith(f".{target}") for target in targets):
            yield path


def _differs(folder: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"--init-from {folder}: {why}; begin with an adapter like the one that is trained")


def _shown(values: Collection[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values))
