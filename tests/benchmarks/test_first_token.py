"""The phases to an engine's first token, on a tiny bank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, write_adapter
from examples.tiny.model import tiny_backbone, tiny_model
from tests.support.paths import ROOT

pytestmark = pytest.mark.model


def test_every_phase_to_the_first_token_takes_its_time(tmp_path: Path) -> None:
    tiny_backbone(tmp_path / BASE)
    write_adapter(tmp_path / "bank/adapters/sql", tiny_model(), seed=1)
    (tmp_path / "bank/bank.json").write_text(json.dumps({"base_model": BASE}))
    publish(open_store(str(tmp_path / "store")), tmp_path / "bank")
    command = [sys.executable, "-m", "benchmarks.measure.first_token", str(tmp_path / BASE), str(tmp_path / "store")]
    said = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"HOME": str(tmp_path)}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    seconds = json.loads(said)
    assert list(seconds)[-3:] == ["model and tokenizer", "engine", "first token"]
    assert all(value > 0 for value in seconds.values())
