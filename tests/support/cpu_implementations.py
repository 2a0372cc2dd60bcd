"""The two implementations of the CPU op, each for all batches: a test's batch is too small for the one for many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CPU_IMPLEMENTATIONS = {"many": 0, "few": 10**9}
"""What `cpu.MAX_KERNEL_PRODUCTS` is then."""


@contextmanager
def cpu_implementation(name: str) -> Iterator[None]:
    from dlp_core.fusion import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "MAX_KERNEL_PRODUCTS", CPU_IMPLEMENTATIONS[name])
        yield
