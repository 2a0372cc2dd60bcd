"""Kill -9 at every step of a publish, a rollback, a pin and a garbage collection, in a folder and on an S3 server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kind", "least"), [("folder", 60), ("s3", 36)])
@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_bank_whole(
    kind: str, least: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("s3")
    command = [sys.executable, "-m", "tests.support.killed", str(tmp_path), uri]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
