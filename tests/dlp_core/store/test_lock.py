"""Locks: who excludes whom, between threads and between processes, and that they end with their holder."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlp_core.store.lock import FileLock, ReadWriteLock
from tests.support.paths import ROOT

HOLDER = """
import sys
from pathlib import Path
from dlp_core.store.lock import {kind}
with {kind}(Path(sys.argv[1]){made}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_shared_locks_stand_side_by_side_and_an_exclusive_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with ReadWriteLock(path, shared=True):
        with ReadWriteLock(path, shared=True):
            assert ReadWriteLock.attempt(path, shared=False) is None
        assert ReadWriteLock.attempt(path, shared=False) is None
    lock = ReadWriteLock.attempt(path, shared=False)
    assert lock is not None
    with lock:
        assert ReadWriteLock.attempt(path, shared=True) is None
        lock.share()
        again = ReadWriteLock.attempt(path, shared=True)
        assert again is not None
        with again:
            assert ReadWriteLock.attempt(path, shared=False) is None


def test_a_shared_lock_may_end_on_another_thread(tmp_path: Path) -> None:
    lock = ReadWriteLock(tmp_path / "lock", shared=True)
    thread = threading.Thread(target=lock.__exit__)
    thread.start()
    thread.join()
    assert ReadWriteLock.attempt(tmp_path / "lock", shared=False) is not None


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


def test_who_waits_for_a_lock_whose_file_is_removed_gets_a_new_file(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", threading.Event()

    def second() -> None:
        with FileLock(path):
            assert FileLock.attempt(path) is None
            held.set()

    thread = threading.Thread(target=second)
    with FileLock(path, remove=True):
        thread.start()
    thread.join(20)
    assert held.is_set()


@pytest.mark.parametrize(("kind", "made"), [(FileLock, ""), (ReadWriteLock, ", shared=True")])
def test_a_killed_process_holds_nothing(tmp_path: Path, kind: type[FileLock | ReadWriteLock], made: str) -> None:
    def attempt() -> FileLock | ReadWriteLock | None:
        path = tmp_path / "lock"
        return FileLock.attempt(path) if kind is FileLock else ReadWriteLock.attempt(path, shared=False)

    code = HOLDER.format(kind=kind.__name__, made=made)
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert attempt() is None
        holder.kill()
        holder.wait()
        lock = attempt()
        assert lock is not None
        with lock:
            pass


def test_a_shared_lock_in_a_folder_that_is_gone_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReadWriteLock.attempt(tmp_path / "gone" / "lock", shared=True)
    assert not (tmp_path / "gone").exists()
