"""A folder of a store as a folder here: used where it lies, or copied for as long as it is needed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from dlp_core.errors import NotFound
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore


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
