"""Copies between the host and the model's device. On a CPU nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, like: Tensor) -> Tensor:
    """A list, an array or a tensor of the host's, on the device of `like`, without waiting for it."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of these on the host, with one wait for their device."""
    if not any(tensor.is_cuda for tensor in tensors):
        return list(tensors)
    copies = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    ]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
