"""In which dtype a backbone is trained against."""

from __future__ import annotations

import pytest
import torch

from dlp_core.train.precision import training_dtype


@pytest.mark.parametrize(
    ("capability", "device", "expected"),
    [
        ("AVX2", "cpu", torch.float32),
        ("DEFAULT", "cpu", torch.float32),
        ("AVX512", "cpu", torch.bfloat16),
        ("AVX2", "cuda", torch.bfloat16),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, capability: str, device: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_dtype(device) == expected
