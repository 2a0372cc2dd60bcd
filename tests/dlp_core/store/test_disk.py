"""What the disk refuses: whose fault it is, and that a full disk is told as one wherever something is written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish, verify
from dlp_core.bank.revision import without_adapter
from dlp_core.errors import BankError, DiskFull, DLPError, InvalidRequest, LocalDiskError
from dlp_core.eval.journal import Answer, Journal
from dlp_core.router import Router
from dlp_core.store import folder as folder_store
from dlp_core.store.base_model import pull, push
from dlp_core.store.disk import disk_error, disk_errors
from dlp_core.store.folder import FolderStore
from dlp_core.store.local_copy import local_copy
from dlp_core.store.memory import memory_store
from tests.support.banks import Spy, write_bank

FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [
        (errno.ENOSPC, DiskFull, 507),
        (errno.EDQUOT, DiskFull, 507),
        (errno.EIO, LocalDiskError, 500),
        (errno.EMFILE, LocalDiskError, 500),
        (errno.ENOENT, InvalidRequest, 400),
        (errno.EACCES, InvalidRequest, 400),
        (errno.EROFS, InvalidRequest, 400),
        (errno.EISDIR, InvalidRequest, 400),
    ],
)
def test_whose_fault_it_is(number: int, kind: type[DLPError], status: int) -> None:
    error = disk_error(OSError(number, os.strerror(number)), "/a/b: cannot be written")
    assert (type(error), error.status, error.retry_after) == (kind, status, None)
    assert error.message.startswith(f"/a/b: cannot be written ({os.strerror(number)})")


def test_the_callers_mistake_is_named_with_what_mends_it() -> None:
    told = r"^/a: cannot be read \(No such file or directory\); write one$"
    with (
        pytest.raises(BankError, match=told),
        disk_errors("/a: cannot be read", mistake=BankError, action="write one"),
    ):
        Path("/a/nowhere").read_bytes()


class NoRoom(Spy):
    """A store whose downloads find the disk full, as they tell it (AdapterStore.download)."""

    def download(self, *args: Any, **kwargs: Any) -> None:
        FULL.write_bytes(b"x")


def _journal(folder: Path) -> None:
    journal = Journal(folder / "answers.jsonl")
    assert journal._file is not None
    with FULL.open("wb") as full:
        os.dup2(full.fileno(), journal._file.fileno())
    with pytest.raises(DiskFull, match=r"answers\.jsonl"):
        journal.add("key", Answer("text", 1, 1))
    journal.close()


def _router(folder: Path) -> None:
    router = Router.load(write_bank(folder / "bank", ["a", "b"]) / "router")
    (folder / ".router.safetensors.partial").symlink_to(FULL)
    router.save(folder)


def _bank(folder: Path) -> tuple[FolderStore, BankManifest]:
    store = FolderStore(folder / "store")
    return store, publish(store, write_bank(folder / "bank", ["a", "b"]))


def _model(folder: Path) -> None:
    (folder / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "base" / name).write_bytes(b"{}")
    store = FolderStore(folder / "models")
    push(store, folder / "base")
    pull(NoRoom(store), folder / "node")


def _copy(folder: Path) -> None:
    store = memory_store(str(folder).strip("/"))
    store.put("a/config.json", b"{}")
    with local_copy(store.uri):
        pass


PLACES: dict[str, Callable[[Path], object]] = {
    "a journal": _journal,
    "a router": _router,
    "a base model": _model,
    "a copy": _copy,
    "an object": lambda folder: FolderStore(folder).put("a", b"x"),
    "files to verify": lambda folder: verify(NoRoom(_bank(folder)[0])),
    "a bank's router": lambda folder: without_adapter(NoRoom(_bank(folder)[0]), "a"),
}


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_nobodys_bad_request(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "an object":
        monkeypatch.setattr(folder_store, "sync", lambda _: FULL.write_bytes(b"x"))
    if place == "a copy":
        write_bytes = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda _, data: write_bytes(FULL, data))
    named = tempfile.gettempdir() if place in ("a copy", "files to verify", "a bank's router") else tmp_path
    with pytest.raises(DiskFull, match="No space left on device") as error:
        PLACES[place](tmp_path)
    assert str(named) in error.value.message


def test_a_path_that_cannot_be_written_is_a_bad_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidRequest, match="choose another --out"):
        Journal(tmp_path / "file" / "answers.jsonl")
