"""--base-model as a user gives it: a folder, a store, the hub; the same words in every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.cli import main
from dlp_core.store.base_model import push
from dlp_core.store.opening import open_store
from dlp_core.store.weights import weights_digest
from tests.support.banks import write_bank
from tests.support.fake_hub import fake_hub
from tests.support.model_folders import write_model

Run = Callable[..., tuple[int, str, str]]
BASE = ["--base-model", "MODEL"]
COMMANDS = {
    "bank init": ["bank", "init", "new", *BASE],
    "bank import": ["bank", "import", "bank/adapters", "--into", "bank", *BASE],
    "bank publish": ["bank", "publish", "bank", "--bank", "memory://base-model", *BASE],
    "adapter check": ["adapter", "check", "bank/adapters/alpha", *BASE],
    "adapter train": ["adapter", "train", "--data", "rows.jsonl", "--out", "a", *BASE],
    "eval": ["eval", "--bank", "bank", "--suite", "suite.yaml", *BASE],
    "serve": ["serve", "--bank", "bank", *BASE],
    "model push": ["model", "push", "MODEL", "memory://base-model"],
}


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dlp ...` in a folder that has a bank, a base model, rows and a suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLP_BASE_MODEL", raising=False)
    write_bank(tmp_path / "bank")
    write_model(tmp_path / "tiny-base")
    (tmp_path / "rows.jsonl").write_text('{"task": "alpha", "input": "x", "output": "y"}\n')
    (tmp_path / "suite.yaml").write_text("name: s\ndata: [rows.jsonl]\ntypes: {qa: {metrics: [f1]}}\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_in_its_name_is_the_same_line_in_every_command(dlp: Run, command: str) -> None:
    code, out, err = dlp(*(word.replace("MODEL", "./typo") for word in COMMANDS[command]))
    assert (code, out) == (2, "")
    assert err == (
        "dlp: there is no folder ./typo; a base model is a folder, s3://, gs:// or az://bucket/prefix/, or org/name of "
        "the Hugging Face hub\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_the_hub(dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    with fake_hub(monkeypatch, tmp_path / "hub", {}):
        code, out, err = dlp(*(word.replace("MODEL", "org/none") for word in COMMANDS[command]))
    assert (code, out) == (2, "")
    assert err.startswith("dlp: hf://org/none: there is no such repository, or it is private; check the name")
    assert len(err.splitlines()) == 1


def test_a_bank_begun_with_a_model_of_the_hub_records_its_weights(
    dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in (tmp_path / "tiny-base").iterdir() if path.is_file()}
    with fake_hub(monkeypatch, tmp_path / "hub", {"org/tiny-base": files}) as hub:
        code, out, err = dlp("bank", "init", "new", "--base-model", "org/tiny-base", "--json")
    assert (code, err) == (0, "")
    digest = weights_digest(tmp_path / "tiny-base")
    assert json.loads(out) == {"folder": "new", "base_model": "org/tiny-base", "weights": digest}
    assert not [name for name in hub.downloaded if name.endswith(".safetensors")], "16 GB for a digest"


def test_a_bank_begun_with_a_model_in_a_store(dlp: Run, tmp_path: Path) -> None:
    push(open_store(str(tmp_path / "models")), tmp_path / "tiny-base")
    code, out, _ = dlp("bank", "init", "new", "--base-model", "models", "--json")
    assert code == 0
    assert json.loads(out)["base_model"] == "tiny-base"
    assert json.loads(out)["weights"] == weights_digest(tmp_path / "tiny-base")


def test_adapters_of_other_weights_are_not_imported(dlp: Run, tmp_path: Path) -> None:
    assert dlp("bank", "init", "new", "--base-model", "tiny-base")[0] == 0
    other = write_model(tmp_path / "other" / "tiny-base", b"x" * 1000)
    code, _, err = dlp("bank", "import", "bank/adapters", "--into", "new", "--base-model", str(other))
    assert code == 2
    assert "'tiny-base' has other weights" in err
    shutil.rmtree(other)
