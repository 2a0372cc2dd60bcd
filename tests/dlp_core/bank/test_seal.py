"""Seals: readable, broken by any later write and by a start of the machine, and cheap while they hold."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlp_core.bank import seal as seals
from dlp_core.bank.seal import SEAL_FILE, is_intact, reseal, seal
from dlp_core.store.files import FileEntry, describe_files

NAMES = ("config.json", "weights.bin")


@pytest.fixture
def files(tmp_path: Path) -> Sequence[FileEntry]:
    for name in NAMES:
        (tmp_path / name).write_bytes(f"content of {name}".encode())
    found = describe_files(tmp_path, NAMES)
    seal(tmp_path, found)
    return found


def test_a_seal_says_what_it_is(tmp_path: Path, files: Sequence[FileEntry]) -> None:
    assert json.loads((tmp_path / SEAL_FILE).read_text()) == {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "files": {
            name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            for name in NAMES
            for stat in [(tmp_path / name).stat()]
        },
    }
    assert is_intact(tmp_path, files)


def test_an_intact_folder_is_not_hashed(
    tmp_path: Path, files: Sequence[FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / file.path).chmod(0)  # whoever would open it could not, except root
    monkeypatch.setattr(seals, "describe_files", lambda *_: pytest.fail("hashed"))
    assert is_intact(tmp_path, files)


@pytest.mark.parametrize("name", NAMES)
def test_a_write_at_once_breaks_the_seal(tmp_path: Path, files: Sequence[FileEntry], name: str) -> None:
    """In the tick of the file system's clock that the file was sealed in, with as many bytes."""
    for _ in range(20):
        assert reseal(tmp_path, files)
        assert (tmp_path / name).stat().st_mtime < time.time() - 2, "no file system has longer ticks"
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(bytes(len(good)))
        assert not is_intact(tmp_path, files)
        assert not reseal(tmp_path, files), "its bytes are wrong"
        (tmp_path / name).write_bytes(good)


def test_a_start_of_the_machine_breaks_the_seal(
    tmp_path: Path, files: Sequence[FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "_BOOT", "another")
    assert not is_intact(tmp_path, files)
    assert reseal(tmp_path, files)
    assert is_intact(tmp_path, files)


@pytest.mark.parametrize("left", [None, b"", b'{"boot": "', b"[]", b'{"boot": "x", "files": {}, "more": 1}'])
def test_files_without_a_seal_are_hashed_and_sealed(
    tmp_path: Path, files: Sequence[FileEntry], left: bytes | None
) -> None:
    """What a write that was cut off leaves of a seal, and files that were sealed by their time alone, in 2001."""
    if left is None:
        (tmp_path / SEAL_FILE).unlink()
        for file in files:
            os.utime(tmp_path / file.path, ns=(10**18, 10**18))
    else:
        (tmp_path / SEAL_FILE).write_bytes(left)
    assert not is_intact(tmp_path, files)
    assert reseal(tmp_path, files)
    assert is_intact(tmp_path, files)


def test_a_seal_is_of_all_files_or_none(tmp_path: Path, files: Sequence[FileEntry]) -> None:
    assert not is_intact(tmp_path, files[:1])
    (tmp_path / NAMES[0]).unlink()
    assert not is_intact(tmp_path, files)
    assert not reseal(tmp_path, files)
    assert not is_intact(tmp_path / "nowhere", files)
