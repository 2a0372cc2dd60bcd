"""Folders that are written while they are served: the digest told is always that of the weights that answer."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from dlp_core.adapter.contents import CONFIG_FILE, FILES, WEIGHTS_FILE
from dlp_core.adapter.weights import Adapter
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.errors import AdapterRefused, AdapterUnavailable, UnknownModel
from dlp_core.fusion.layers import install
from dlp_core.mix import Mix
from dlp_core.residency import sources
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from dlp_core.store.files import describe_files, digest_of
from tests.dlp_core.engine.test_engine import generate, prompt
from tests.support.tiny import peft_adapter, tiny_llama

IDS = prompt(1, 64)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {name: peft_adapter(tmp_path / name, seed, r=2, lora_alpha=16) for seed, name in enumerate("aon")}


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of files tell nothing for a day."""
    monkeypatch.setattr(sources, "_SETTLED_S", 86_400.0)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of files tell everything at once."""
    monkeypatch.setattr(sources, "_SETTLED_S", 0.0)


def overwrite(folder: Path, by: Path) -> None:
    """Writes other files in place."""
    for name in FILES:
        (folder / name).write_bytes((by / name).read_bytes())


async def engine_of(source: FolderSource) -> FusedEngine:
    model = tiny_llama()
    fusion = install(model)
    config = EngineConfig(slots=1, page_tokens=8, cache_tokens=1024, batch_tokens=48)
    engine = FusedEngine(model, fusion, Residency(source, fusion, 1, host_bytes=1), config)
    await engine.start()
    return engine


@pytest.mark.model
@pytest.mark.parametrize("evicted", [True, False], ids=["evicted", "resident"])
async def test_a_folder_that_was_overwritten_answers_as_the_new_adapter(
    folders: dict[str, Path], evicted: bool
) -> None:
    """Cache blocks of the old weights are never mixed with the new ones."""
    source = FolderSource({name: folders[name] for name in "ao"})
    engine, fresh = await engine_of(source), await engine_of(FolderSource({"a": folders["n"]}))
    try:
        old, old_digest = await generate(engine, "one", IDS, Mix.of({"a": 1.0})), source.digest("a")
        overwrite(folders["a"], folders["n"])
        if evicted:
            await generate(engine, "two", IDS, Mix.of({"o": 1.0}))
        shared = engine.stats().shared_tokens
        new = await generate(engine, "three", IDS, Mix.of({"a": 1.0}))
        assert new == await generate(fresh, "fresh", IDS, Mix.of({"a": 1.0})) != old
        assert engine.stats().shared_tokens == shared
        assert source.digest("a") == digest_of(describe_files(folders["n"], FILES)) != old_digest
        assert await generate(engine, "four", IDS, Mix.of({"a": 1.0})) == new
        assert engine.stats().shared_tokens == shared + 56
    finally:
        await engine.stop()
        await fresh.stop()


def test_the_digest_is_that_of_both_files(folders: dict[str, Path]) -> None:
    """And the same as a bank's: `sha256sum * | sha256sum`."""
    source = FolderSource(folders)
    before = source.digest("a")
    assert before == digest_of(describe_files(folders["a"], FILES)) == digest_of(source.load("a").files)
    config = json.loads((folders["a"] / CONFIG_FILE).read_text())
    (folders["a"] / CONFIG_FILE).write_text(json.dumps(config | {"lora_alpha": 3}))
    assert source.digest("a") == digest_of(source.load("a").files) != before


def test_a_write_that_leaves_time_and_size_is_noticed(folders: dict[str, Path], unsettled: None) -> None:
    source = FolderSource(folders)
    before, path = source.digest("a"), folders["a"] / WEIGHTS_FILE
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.digest("a") != before


def test_a_write_in_the_same_tick_of_the_clock_is_noticed(
    folders: dict[str, Path], unsettled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = sources._state(folders["a"])
    monkeypatch.setattr(sources, "_state", lambda folder: state)
    source = FolderSource(folders)
    before = source.digest("a")
    overwrite(folders["a"], folders["n"])
    assert source.digest("a") != before


def test_a_copy_with_the_times_of_its_source_is_noticed(folders: dict[str, Path], settled: None) -> None:
    for name in FILES:
        os.utime(folders["n"] / name, ns=((folders["a"] / name).stat().st_mtime_ns,) * 2)
    time.sleep(0.05)
    source = FolderSource(folders)
    before = source.digest("a")
    shutil.copy2(folders["n"] / WEIGHTS_FILE, folders["a"] / WEIGHTS_FILE)
    assert source.digest("a") != before


def test_files_that_have_not_changed_are_hashed_once(
    folders: dict[str, Path], settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(0.05)
    source = FolderSource(folders)
    before = source.digest("a")
    monkeypatch.setattr(sources, "describe_files", None)
    assert source.digest("a") == before


async def test_weights_that_changed_after_their_digest_was_told_are_not_served(folders: dict[str, Path]) -> None:
    class Overwritten(FolderSource):
        """Overwritten between the request and the load."""

        overwrites = 1

        def load(self, name: str) -> Adapter:
            if self.overwrites:
                self.overwrites -= 1
                overwrite(folders["a"], folders["n"])
            return super().load(name)

    source = Overwritten({"a": folders["a"]})
    residency = Residency(source, install(tiny_llama()), 1)
    with pytest.raises(AdapterUnavailable, match="'a' was changed while it was loaded; try again"):
        async with residency.pinned(["a"]):
            raise AssertionError("it must not be served")
    async with residency.pinned(["a"]) as pins:
        assert pins["a"].digest == digest_of(describe_files(folders["n"], FILES))
    residency.close()


def test_a_folder_without_its_files_is_refused_by_name(folders: dict[str, Path]) -> None:
    source = FolderSource(folders)
    (folders["a"] / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterRefused, match=r"adapter 'a': its files in .* cannot be read"):
        source.digest("a")
    with pytest.raises(UnknownModel, match="choose from: a, n, o"):
        source.digest("b")


def test_the_adapter_is_of_the_bytes_that_were_hashed(folders: dict[str, Path]) -> None:
    adapter = FolderSource(folders).load("a")
    assert [file.path for file in adapter.files] == list(FILES)
    assert adapter.files == describe_files(folders["a"], FILES)
