"""Kill -9 at every step of a publish, a rollback, a pin and a garbage collection, in every kind of store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import SHARED, empty_place

STRIDES = {"gs": 5, "az": 5}
"""Their code is one, and so are its steps: a kill at each fifth of either's will do."""


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_bank_whole(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = empty_place(kind, request, tmp_path)
    least = 60 if kind == "folder" else 36
    stride = STRIDES.get(kind, 1)
    command = [sys.executable, "-m", "tests.support.killed", str(tmp_path), uri, str(stride)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
