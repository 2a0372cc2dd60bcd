"""`dlp model`: a base model goes to a store and comes back whole, over S3 and a folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import main, model
from dlp_core.errors import Conflict, DigestMismatch, InvalidRequest, NotFound, StoreUnavailable
from dlp_core.store import base_model
from dlp_core.store.base_model import MANIFEST, describe, pull, push
from dlp_core.store.files import digest_of
from dlp_core.store.opening import open_store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["s3", "folder"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in each kind of store that several machines can share."""
    return str(request.getfixturevalue("s3")) if request.param == "s3" else str(tmp_path / "store")


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dlp model ...`; returns exit code, stdout, stderr."""
    for name in ("DLP_BASE_MODEL", "DLP_BASE_MODEL_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "model", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def write_model(folder: Path, weights: bytes = b"w" * 300_000) -> Path:
    """What a Hugging Face folder looks like, with what must stay at home."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model"):
        (folder / name).write_text(f"{name}\n")
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
    (folder / "model-00002-of-00002.safetensors").write_bytes(weights[::2])
    for name in ("pytorch_model.bin", "modeling.py", ".hidden.json"):
        (folder / name).write_text("stays at home")
    (folder / "onnx").mkdir()
    return folder


MOVED = {
    "config.json",
    "tokenizer.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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
    assert "as it was" in dlp("pull", uri, str(target))[1]


def test_the_environment_names_both_ends(dlp: Run, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the init container of a backbone pod runs it."""
    push(open_store(uri), write_model(tmp_path / "base"))
    monkeypatch.setenv("DLP_BASE_MODEL_URI", uri)
    monkeypatch.setenv("DLP_BASE_MODEL", str(tmp_path / "models" / "base"))
    code, out, _ = dlp("pull", "--wait", "60")
    assert code == 0
    assert "7 files, 0.5 MB" in out
    assert names(tmp_path / "models" / "base") == MOVED | {MANIFEST}


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
        (["push", str(tmp_path / "nowhere"), stored], "config.json"),
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
    monkeypatch.setattr(model, "RETRY_S", 0.05)
    source = write_model(tmp_path / "base")
    later = threading.Timer(0.3, lambda: push(open_store(uri), source))
    later.start()
    assert json_of(dlp("pull", uri, str(tmp_path / "node"), "--wait", "30", "--json"))["fetched"]
    later.join()


def test_pull_waits_no_longer_than_it_was_told(dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "RETRY_S", 0.05)
    began = time.monotonic()
    code, _, err = dlp("pull", str(tmp_path / "nothing"), str(tmp_path / "node"), "--wait", "0.3")
    assert (code, err.count("\n")) == (2, 1)
    assert 0.2 < time.monotonic() - began < 5
