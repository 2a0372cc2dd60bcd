"""The digest of a base model's weights: of every copy the same, of other weights another, and read once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from dlp_core.store import weights
from dlp_core.store.base_model import pull, push
from dlp_core.store.opening import open_store
from dlp_core.store.weights import weights_digest
from tests.support.model_folders import write_model


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "MEMORY", tmp_path / "of" / "digests.json")
    return tmp_path / "of" / "digests.json"


def read_bytes(folder: Path) -> int:
    """How many bytes are read to know the digest."""
    last = [0]
    weights_digest(folder, progress=lambda done, total: last.__setitem__(0, done))
    return last[0]


def test_it_is_what_sha256sum_says(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    lines = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    )
    assert weights_digest(folder) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_copies_agree_and_other_weights_do_not(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    digest = weights_digest(folder)
    shutil.copytree(folder, tmp_path / "renamed")
    (tmp_path / "renamed" / "config.json").write_text("{}")
    assert weights_digest(tmp_path / "renamed") == digest
    assert weights_digest(write_model(tmp_path / "other", b"v" * 300_000)) != digest
    push(open_store(f"memory://{tmp_path.name}"), folder)
    pull(open_store(f"memory://{tmp_path.name}"), tmp_path / "pulled")
    assert weights_digest(tmp_path / "pulled") == digest
    assert read_bytes(tmp_path / "pulled") == 0, "it was verified when it was pulled"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, memory: Path) -> None:
    folder = write_model(tmp_path / "a")
    assert read_bytes(folder) == 450_000
    assert read_bytes(folder) == 0
    shard = folder / "model-00002-of-00002.safetensors"
    before, stamp = weights_digest(folder), shard.stat().st_mtime_ns
    shard.write_bytes(b"x" * 150_000)
    os.utime(shard, ns=(stamp + 1, stamp + 1))
    assert read_bytes(folder) == 150_000
    assert weights_digest(folder) != before
    memory.write_text("[not what it was")
    assert read_bytes(folder) == 450_000


def test_weights_changed_after_they_were_pulled_are_read(tmp_path: Path) -> None:
    push(open_store(f"memory://{tmp_path.name}"), write_model(tmp_path / "a"))
    pull(open_store(f"memory://{tmp_path.name}"), tmp_path / "pulled")
    digest = weights_digest(tmp_path / "pulled")
    shard = tmp_path / "pulled" / "model-00002-of-00002.safetensors"
    shard.write_bytes(b"x" * 150_000)
    later = (tmp_path / "pulled" / "model.json").stat().st_mtime_ns + 1
    os.utime(shard, ns=(later, later))
    assert weights_digest(tmp_path / "pulled") != digest


def test_without_a_place_to_remember_it_is_read_again(tmp_path: Path, memory: Path) -> None:
    memory.parent.write_text("a file, where a folder would be")
    folder = write_model(tmp_path / "a")
    assert read_bytes(folder) == read_bytes(folder) == 450_000


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(tmp_path) is None
