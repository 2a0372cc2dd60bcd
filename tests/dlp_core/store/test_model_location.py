"""A base model is found in a folder, a store and the hub, with the files that it is loaded from and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlp_core.errors import DLPError, InvalidRequest, NotFound, StoreUnavailable
from dlp_core.store import model_location, weights
from dlp_core.store.base_model import push
from dlp_core.store.model_folder import MANIFEST
from dlp_core.store.model_location import locate
from dlp_core.store.opening import open_store
from dlp_core.store.weights import weights_digest
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.model_folders import MOVED, names, write_model
from tests.support.stores import SHARED, empty_place

ID = "org/Base-1B"
SHARDS = {name for name in MOVED if name.endswith(".safetensors")}
FOREIGN = (
    "pytorch_model.bin",
    "base.gguf",
    "onnx/model.onnx",
    "onnx/config.json",
    "consolidated.safetensors",
    "README.md",
)
MORE = dict.fromkeys(FOREIGN, b"not loaded")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_location, "MODELS", tmp_path / "models")
    monkeypatch.setattr(weights, "MEMORY", tmp_path / "digests.json")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=SHARED)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return empty_place(request.param, request, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "Base-1B")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> Iterator[FakeHub]:
    files = {name: (source / name).read_bytes() for name in MOVED} | MORE
    with fake_hub(monkeypatch, tmp_path / "hub", {ID: files, "org/words": {"README.md": b""}}) as running:
        yield running


def test_a_folder_is_taken_as_it_is(source: Path) -> None:
    assert locate(str(source)) == source
    assert locate("Base-1B") == Path("Base-1B")


def test_a_model_in_a_store_is_fetched_once(uri: str, source: Path) -> None:
    push(open_store(uri), source)
    reported: list[tuple[int, int]] = []
    folder = locate(uri, progress=lambda done, total: reported.append((done, total)))
    assert names(folder) == MOVED | {MANIFEST}
    assert folder.name == "Base-1B"
    assert reported[-1] == (sum((source / name).stat().st_size for name in MOVED),) * 2
    reported.clear()
    assert locate(uri, weights=False, progress=lambda done, total: reported.append((done, total))) == folder
    assert not reported


def test_without_weights_the_rest_of_a_store_is_fetched(uri: str, source: Path) -> None:
    push(open_store(uri), source)
    folder = locate(uri, weights=False)
    assert names(folder) == (MOVED - SHARDS) | {MANIFEST}
    assert folder.name == "Base-1B"
    assert weights_digest(folder) == weights_digest(source), "the store knows it"
    assert names(locate(uri)) == MOVED | {MANIFEST}


@pytest.mark.parametrize("location", [ID, f"hf://{ID}", f"{ID}@main"])
def test_a_model_of_the_hub_is_fetched_once(hub: FakeHub, location: str, source: Path) -> None:
    reported: list[tuple[int, int]] = []
    folder = locate(location, progress=lambda done, total: reported.append((done, total)))
    assert names(folder) == MOVED
    assert (folder / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert reported
    assert all(0 <= done <= total for done, total in reported)
    assert sorted(hub.downloaded) == sorted(MOVED)
    assert locate(location) == folder
    assert sorted(hub.downloaded) == sorted(MOVED)


def test_without_weights_the_hub_is_asked_for_their_digest(hub: FakeHub, source: Path) -> None:
    folder = locate(ID, weights=False)
    assert set(hub.downloaded) == MOVED - SHARDS
    assert weights_digest(folder) == weights_digest(source)


def test_offline_the_cache_serves_what_it_has(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    folder = locate(ID)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate(ID) == folder
    assert weights_digest(folder) == weights_digest(source), "by the names of the cached files"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(StoreUnavailable, match=r"hf://org/Base-1B: HF_HUB_OFFLINE is set, and .* not have all of it"):
        locate(ID)
    assert weights_digest(locate(ID, weights=False)) is None


def test_a_hub_that_does_not_answer(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"hf://org/Base-1B: http://127.0.0.1:9 cannot be reached"):
        locate(ID)


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        (
            "org/none",
            NotFound,
            "there is no such repository, or it is private; check the name, or log in with `hf auth",
        ),
        (f"{ID}@other", NotFound, "hf://org/Base-1B@other: the repository has no such revision"),
        ("org/words", InvalidRequest, r"hf://org/words is not a model: it has no config\.json"),
        ("hf://a/b/c", InvalidRequest, "hf://a/b/c: "),
        ("./typo", InvalidRequest, r"there is no folder \./typo; a base model is a folder, s3://"),
        ("Base-1B/typo", InvalidRequest, "there is no folder Base-1B/typo"),
        ("/models/typo", InvalidRequest, "there is no folder /models/typo"),
        ("models/of/typo", InvalidRequest, "there is no folder models/of/typo"),
        ("typo", InvalidRequest, "there is no folder typo"),
        ("ftp://host/model", InvalidRequest, "must be s3://"),
    ],
)
def test_a_mistake_is_one_line(hub: FakeHub, source: Path, location: str, kind: type[DLPError], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        locate(location)
    assert "\n" not in raised.value.message


def test_a_gated_model_says_where_its_terms_are(hub: FakeHub) -> None:
    hub.gated.add(ID)
    with pytest.raises(NotFound, match=rf"is gated: accept its terms on {hub.url}/{ID}, then log in with `hf auth"):
        locate(ID)


def test_a_manifest_cannot_name_another_folder(tmp_path: Path, source: Path) -> None:
    uri = f"memory://{tmp_path.name}-escape"
    push(open_store(uri), source)
    store = open_store(uri)
    damaged = store.get(MANIFEST).data.replace(b'"Base-1B"', b'"../../out"')
    store.delete(MANIFEST)
    store.put(MANIFEST, damaged)
    with pytest.raises(InvalidRequest, match=r"'\.\./\.\./out' cannot be a folder's name"):
        locate(uri)
