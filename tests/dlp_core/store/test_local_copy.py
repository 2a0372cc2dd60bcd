"""A folder of a store as a folder here: used where it lies, or copied for as long as it is needed. Whatever the keys
are, nothing is written elsewhere."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from dlp_core.errors import InvalidRequest, NotFound
from dlp_core.store import local_copy as module
from dlp_core.store.local_copy import MAX_JSON_BYTES, local_copy
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore, ObjectInfo, StoredObject


@pytest.fixture
def store() -> AdapterStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    with local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path.resolve()
    with pytest.raises(NotFound, match="no folder"), local_copy(str(tmp_path / "none")):
        pass


def test_objects_are_copied_by_what_they_may_be(store: AdapterStore, tmp_path: Path) -> None:
    for key in ("adapter_config.json", "deep/adapter_model.safetensors", "weights.bin"):
        store.put(key, b"12345")
    seen: list[tuple[int, int]] = []
    with local_copy(store.uri, progress=lambda done, total: seen.append((done, total))) as folder:
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
    assert found == {"adapter_config.json": 5, "deep/adapter_model.safetensors": 5, "weights.bin": 0}
    assert seen[-1] == (15, 15)
    assert not folder.exists()
    with pytest.raises(NotFound, match="nothing at"), local_copy(f"memory://{uuid.uuid4().hex}"):
        pass


class Bucket:
    """A store that lists keys as an evil one would."""

    uri = "s3://evil/p/"

    def __init__(self, objects: dict[str, bytes], sizes: dict[str, int] | None = None) -> None:
        self._objects, self._sizes = objects, sizes or {}
        self.read: list[str] = []

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        return [ObjectInfo(key, self._sizes.get(key, len(data)), "e") for key, data in self._objects.items()]

    def get(self, key: str) -> StoredObject:
        self.read.append(key)
        return StoredObject(self._objects[key], "e")


def use(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    monkeypatch.setattr(module, "open_store", lambda location: bucket)


def everything(folder: Path) -> dict[str, Any]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "key", ["../rel.db", "/abs/data.db", "a/../../x.json", "..", "a//b.json", "a\\..\\b.json", "a\x00.json", "./x", ""]
)
def test_a_key_that_leads_out_is_refused_before_anything_is_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "rel.db").write_text("precious")
    bucket = Bucket({"adapter_config.json": b"{}", key: b"evil"})
    use(monkeypatch, bucket)
    before = everything(tmp_path)
    with pytest.raises(InvalidRequest, match="object key"), local_copy("s3://evil/p/"):
        pass
    assert bucket.read == []
    assert {path: at for path, at in everything(tmp_path).items() if "rel.db" in path} == {
        path: at for path, at in before.items() if "rel.db" in path
    }
    assert (tmp_path / "rel.db").read_text() == "precious"


def test_what_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket({"adapter_config.json": b"{}"}, {"adapter_config.json": MAX_JSON_BYTES + 1})
    use(monkeypatch, bucket)
    with (
        pytest.raises(InvalidRequest, match=r"'adapter_config\.json' in s3://evil/p/ has 67,108,865 bytes"),
        local_copy("s3://evil/p/"),
    ):
        pass
    assert bucket.read == []


def test_files_of_tools_are_left_out_and_others_come_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {".gitattributes": b"x", ".cache/a.json": b"x", "a/b.json": b"{}", "a/w.bin": b"pickle"}
    use(monkeypatch, Bucket(objects))
    with local_copy("s3://evil/some-adapter/") as folder:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert folder.name == "some-adapter"
    assert found == {"a/b.json": b"{}", "a/w.bin": b""}


def test_what_a_trainer_leaves_comes_by_name_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"adapter_config.json": b"{}", "adapters/checkpoint-5/adapter_config.json": b"{}", "description.txt": b"x"}
    left = ("merges.txt", "trainer_state.json", "checkpoint-9/model.safetensors", "a/checkpoint-9/deep/x.json")
    bucket = Bucket(kept | dict.fromkeys(left, b"x"), dict.fromkeys(left, 1 << 40))
    use(monkeypatch, bucket)
    with local_copy("s3://evil/some-adapter/") as folder:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == kept | dict.fromkeys(left, b"")
    assert bucket.read == list(kept)


@pytest.mark.parametrize("location", ["s3://evil/..", "s3://..", "s3://evil/.hidden", "s3://evil/p"])
def test_a_copy_is_never_beside_its_folder(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Bucket({"a.json": b"{}"}))
    with local_copy(location) as folder:
        assert folder.parent.name.startswith("dlp-copy-")
        assert (folder / "a.json").exists()


@pytest.mark.parametrize("location", ["\x00", "a\x00b", "s3://a/\n"])
def test_a_location_with_control_characters_is_none(location: str) -> None:
    with pytest.raises(InvalidRequest, match="control characters"), local_copy(location):
        pass


def test_a_tokenizer_of_many_languages_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Bucket({"tokenizer.json": b" " * (17 << 20)}))
    with local_copy("s3://some/adapter/") as folder:
        assert (folder / "tokenizer.json").stat().st_size == 17 << 20


def test_nothing_but_files_of_tools_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Bucket({".gitattributes": b"x"}))
    with pytest.raises(NotFound, match="nothing at"), local_copy("s3://some/adapter/"):
        pass
