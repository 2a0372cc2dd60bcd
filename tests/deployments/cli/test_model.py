"""`dlp model`: what it prints, what it takes from the environment, how it waits, and mistakes in one line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.cli import model
from dlp_core.store import base_model
from dlp_core.store.base_model import describe, pull, push
from dlp_core.store.model_folder import MANIFEST
from dlp_core.store.opening import open_store
from tests.deployments.cli.conftest import Run
from tests.support.model_folders import MOVED, names, write_model
from tests.support.stores import SHARED, empty_place


@pytest.fixture(params=SHARED)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in each kind of store that several machines can share."""
    return empty_place(request.param, request, tmp_path)


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    """Runs `dlp model ...`; returns exit code, stdout, stderr."""
    for name in ("DLP_BASE_MODEL", "DLP_BASE_MODEL_URI"):
        monkeypatch.delenv(name, raising=False)

    return partial(command, "model")


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_model_comes_back_as_it_was(dlp: Run, uri: str, tmp_path: Path) -> None:
    source, target = write_model(tmp_path / "base"), tmp_path / "node" / "base"
    pushed = json_of(dlp("push", str(source), uri, "--json"))
    assert (pushed["name"], pushed["files"]) == ("base", len(MOVED))
    pulled = json_of(dlp("pull", uri, str(target), "--json"))
    assert pulled == {**pushed, "folder": str(target), "fetched": True}
    assert names(target) == MOVED | {MANIFEST}
    for name in MOVED:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert names(target.parent) == {"base"}, "nothing of the transfer is left"


def test_what_is_there_is_not_moved_again(dlp: Run, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = write_model(tmp_path / "base"), tmp_path / "node"
    push(open_store(uri), source)
    pull(open_store(uri), target)
    assert describe(target) == describe(source).model_copy(update={"name": "node"})
    monkeypatch.setattr(base_model, "in_parallel", lambda *_: pytest.fail("files were moved"))
    assert json_of(dlp("push", str(source), uri, "--json"))["files"] == len(MOVED)
    assert json_of(dlp("pull", uri, str(target), "--json"))["fetched"] is False
    assert "unchanged" in dlp("pull", uri, str(target))[1]


def test_the_environment_names_both_ends(dlp: Run, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the init container of a backbone pod runs it."""
    push(open_store(uri), write_model(tmp_path / "base"))
    monkeypatch.setenv("DLP_BASE_MODEL_URI", uri)
    monkeypatch.setenv("DLP_BASE_MODEL", str(tmp_path / "models" / "base"))
    code, out, _ = dlp("pull", "--wait", "60")
    assert code == 0
    assert "7 files, 0.5 MB" in out
    assert names(tmp_path / "models" / "base") == MOVED | {MANIFEST}


def test_a_mistake_is_one_line_and_exit_2(dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_weights = write_model(tmp_path / "no_weights")
    for weights in no_weights.glob("*.safetensors"):
        weights.unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    stored = str(tmp_path / "store")
    push(open_store(stored), write_model(tmp_path / "base"))
    for arguments, says in (
        (["push", str(tmp_path / "empty"), stored], "config.json"),
        (["push", str(tmp_path / "nowhere"), stored], "there is no folder"),
        (["push", str(no_weights), stored], "safetensors"),
        (["push", str(tmp_path / "base"), "ftp://x"], "ftp://x"),
        (["pull", str(tmp_path / "nothing"), str(tmp_path / "node")], "dlp model push"),
        (["pull", stored, str(tmp_path / "base")], "remove it"),
        (["pull", stored, str(tmp_path / "file" / "node")], "cannot be written"),
    ):
        code, out, err = dlp(*arguments)
        assert (code, out) == (2, ""), arguments
        assert says in err, arguments
        assert err.count("\n") == 1, err
    monkeypatch.setattr(base_model, "MAX_FILE_BYTES", 200_000)
    code, _, err = dlp("push", str(tmp_path / "base"), str(tmp_path / "store2"))
    assert (code, "max_shard_size" in err) == (2, True)
    assert not (tmp_path / "store2").exists()


def test_pull_waits_for_a_model_that_is_pushed_later(
    dlp: Run, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, waits = write_model(tmp_path / "base"), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            push(open_store(uri), source)

    monkeypatch.setattr(model, "time", SimpleNamespace(monotonic=lambda: sum(waits), sleep=sleep))
    assert json_of(dlp("pull", uri, str(tmp_path / "node"), "--wait", "30", "--json"))["fetched"]
    assert len(waits) == 3


def test_pull_waits_no_longer_than_it_was_told(dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(model, "time", SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append))
    code, _, err = dlp("pull", str(tmp_path / "nothing"), str(tmp_path / "node"), "--wait", "31")
    assert (code, err.count("\n")) == (2, 1)
    assert 31 - model.RETRY_S < sum(waits) <= 31
