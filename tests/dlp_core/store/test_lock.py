"""Locks: who excludes whom, between threads and between processes, and that they end with their holder."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlp_core.store.lock import FileLock
from tests.support.paths import ROOT

HOLDER = """
import sys
from pathlib import Path
from dlp_core.store.lock import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("folder", [False, True])
def test_shared_locks_stand_side_by_side_and_an_exclusive_one_alone(tmp_path: Path, *, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "lock"
    with FileLock(path, shared=True, folder=folder):
        with FileLock(path, shared=True, folder=folder):
            assert FileLock.attempt(path, folder=folder) is None
        assert FileLock.attempt(path, folder=folder) is None
    lock = FileLock.attempt(path, folder=folder)
    assert lock is not None
    with lock:
        assert FileLock.attempt(path, shared=True, folder=folder) is None
        lock.share()
        again = FileLock.attempt(path, shared=True, folder=folder)
        assert again is not None
        with again:
            pass


def test_a_lock_waits_for_the_one_before_it(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with FileLock(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with FileLock(tmp_path / "lock"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert FileLock.attempt(tmp_path / "lock") is None
        holder.kill()
        holder.wait()
        lock = FileLock.attempt(tmp_path / "lock")
        assert lock is not None
        with lock:
            pass


def test_a_folder_that_is_gone_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock.attempt(tmp_path / "gone", folder=True)
    assert not (tmp_path / "gone").exists()
