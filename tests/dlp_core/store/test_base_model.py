"""A base model in a store: it comes back whole or not at all, in every kind of store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from dlp_core.errors import Conflict, DigestMismatch, InvalidRequest, NotFound, StoreUnavailable
from dlp_core.store.base_model import pull, push
from dlp_core.store.files import digest_of
from dlp_core.store.model_folder import MANIFEST
from dlp_core.store.opening import open_store
from tests.support.model_folders import MOVED, names, write_model
from tests.support.stores import SHARED, empty_place


@pytest.fixture(params=SHARED)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in each kind of store that several machines can share."""
    return empty_place(request.param, request, tmp_path)


class CutOff:
    """A store that fails at one file, and keeps the names of those it moved."""

    def __init__(self, uri: str, fails_at: str | None) -> None:
        self._store = open_store(uri)
        self._fails_at = fails_at
        self.moved: list[str] = []

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._store, method)
        if method not in ("put", "download"):
            return target

        def call(key: str, *args: Any, **kwargs: Any) -> Any:
            name = key.rpartition("/")[2]
            if name == self._fails_at:
                raise StoreUnavailable("cut off")
            result = target(key, *args, **kwargs)
            self.moved.append(name)
            return result

        return call


LAST = "tokenizer.model"


def test_an_interrupted_push_resumes(uri: str, tmp_path: Path) -> None:
    source, first, second = write_model(tmp_path / "base"), CutOff(uri, LAST), CutOff(uri, None)
    with pytest.raises(StoreUnavailable):
        push(first, source)
    with pytest.raises(NotFound, match="dlp model push"):
        pull(open_store(uri), tmp_path / "node")
    push(second, source)
    assert set(first.moved) | set(second.moved) == MOVED | {MANIFEST}
    assert not set(first.moved) & set(second.moved)


def test_an_interrupted_pull_resumes_and_leaves_no_half_model(uri: str, tmp_path: Path) -> None:
    target, first, second = tmp_path / "node", CutOff(uri, LAST), CutOff(uri, None)
    push(open_store(uri), write_model(tmp_path / "base"))
    with pytest.raises(StoreUnavailable):
        pull(first, target)
    assert not target.exists()
    [partial] = tmp_path.glob(".node.*.part")
    (partial / "config.json").write_text("torn")  # what lies there is believed only by its digest
    pull(second, target)
    assert set(second.moved) == MOVED - set(first.moved) | {"config.json"}
    assert names(target) == MOVED | {MANIFEST}
    assert not partial.exists()


def test_a_changed_object_never_becomes_a_model(uri: str, tmp_path: Path) -> None:
    store, target = open_store(uri), tmp_path / "node"
    manifest = push(store, write_model(tmp_path / "base"))
    store.put(f"{manifest.prefix}tokenizer.json", b"tokenizer.jsoN\n")
    with pytest.raises(DigestMismatch, match=r"tokenizer\.json"):
        pull(store, target)
    assert not target.exists()


def test_pulls_of_one_folder_at_once_fetch_it_once(uri: str, tmp_path: Path) -> None:
    push(open_store(uri), write_model(tmp_path / "base"))
    stores, fetched = [CutOff(uri, None) for _ in range(4)], []
    threads = [
        threading.Thread(target=lambda store=store: fetched.append(pull(store, tmp_path / "node")[1]))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == [False, False, False, True]
    assert sum(len(store.moved) for store in stores) == len(MOVED)
    assert names(tmp_path) - {"store", "no-aws-config"} == {"base", "node"}


def test_a_location_keeps_its_model(uri: str, tmp_path: Path) -> None:
    store = open_store(uri)
    first = push(store, write_model(tmp_path / "base"))
    with pytest.raises(Conflict, match="another location"):
        push(store, write_model(tmp_path / "other", weights=b"x" * 10))
    assert pull(store, tmp_path / "node")[0] == first


def test_a_folder_keeps_what_it_has(uri: str, tmp_path: Path) -> None:
    store, other = open_store(uri), open_store(str(tmp_path / "store2"))
    push(store, write_model(tmp_path / "base"))
    push(other, write_model(tmp_path / "other", weights=b"x" * 10))
    pull(store, tmp_path / "node")
    with pytest.raises(InvalidRequest, match="remove it"):
        pull(other, tmp_path / "node")
    (tmp_path / "node" / LAST).write_text("cut")
    with pytest.raises(InvalidRequest, match="remove it"):
        pull(store, tmp_path / "node")
    (tmp_path / "empty").mkdir()
    assert pull(store, tmp_path / "empty")[1]


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_manifest_is_not_trusted(path: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    manifest = push(store, write_model(tmp_path / "base"))
    files = (manifest.files[0].model_copy(update={"path": path}), *manifest.files[1:])
    forged = manifest.model_copy(update={"files": files, "digest": digest_of(files)})
    store.put(MANIFEST, forged.model_dump_json().encode())
    with pytest.raises(InvalidRequest, match="plain file name"):
        pull(store, tmp_path / "node")
