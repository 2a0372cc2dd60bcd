"""The tiny bank: written by its command, whole enough to be published, and its router knows its prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlp_core.adapter.weights import read_adapter
from dlp_core.bank.publish import publish
from dlp_core.router import Router
from dlp_core.store.memory import MemoryStore
from examples.tiny.build import BASE, LORA, TASKS
from tests.support.paths import ROOT

pytestmark = pytest.mark.model


def test_the_command_writes_a_model_and_a_bank_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.tiny.build", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    bank = tmp_path / "bank"
    assert json.loads(said) == {"base_model": str(tmp_path / BASE), "bank": str(bank)}

    manifest = publish(MemoryStore("tiny"), bank)
    assert (manifest.base_model.id, [entry.name for entry in manifest.adapters]) == (BASE, sorted(LORA))
    for name in LORA:
        modules = read_adapter(bank / "adapters" / name, name=name).modules
        assert modules
        assert all(weights.b_OR.any() for weights in modules.values()), "an adapter that does nothing tests nothing"
    routings = Router.load(bank / "router").route([text.format(77) for text in TASKS.values()])
    assert [routing.mix().names[0] for routing in routings] == list(TASKS)
