"""In which dtype a backbone is trained against: the one it is served in, unless the CPU has no instructions for it."""

from __future__ import annotations

import torch

_WITHOUT_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")


def training_dtype(device: str) -> torch.dtype:
    """bfloat16; float32 on a CPU without AVX-512, where a pass of bfloat16 forward and backward takes twenty times as
    long (docs/log.md)."""
    slow = device == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_BFLOAT16
    return torch.float32 if slow else torch.bfloat16
