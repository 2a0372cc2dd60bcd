"""Lets the LoRA of a PEFT model through at chosen tokens of a pass: an activated adapter is trained as it is served.

PEFT's own aLoRA layers activate the end of each row. A packed row (packing.py) has several examples, so what is
gated here is each layer's `lora_A` output: 0 at tokens before an example's invocation, as it is elsewhere. The factors'
gradients are those of PEFT's layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Gate:
    """Open unless `only` says otherwise."""

    def __init__(self, model: Any) -> None:
        """`model` is a PEFT model with one ordinary LoRA adapter on linear layers."""
        from peft.tuners.lora.layer import LoraLayer

        self._mask_BT1: torch.Tensor | None = None
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for factor in layer.lora_A.values():
                    factor.register_forward_hook(self._let_through)

    @contextmanager
    def only(self, active_BT: torch.Tensor) -> Iterator[None]:
        """In a pass over B rows of T tokens, let LoRA through at those that are true."""
        self._mask_BT1 = active_BT[..., None]
        try:
            yield
        finally:
            self._mask_BT1 = None

    def _let_through(self, module: Any, args: Any, output_BTR: torch.Tensor) -> torch.Tensor | None:
        return None if self._mask_BT1 is None else output_BTR * self._mask_BT1
