"""The two ways of the CPU op, each for all batches: a batch of a test is too small to be computed the way for many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CPU_WAYS = {"many": 0, "few": 10**9}
"""What `cpu.FEW` is then."""


@contextmanager
def cpu_way(name: str) -> Iterator[None]:
    from dlp_core.fusion import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "FEW", CPU_WAYS[name])
        yield
