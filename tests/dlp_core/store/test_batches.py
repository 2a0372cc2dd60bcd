"""Records reach the store in batches, and whoever adds one neither waits nor fails, whatever the store does."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlp_core.errors import StoreUnavailable
from dlp_core.store import batches
from dlp_core.store.batches import BatchWriter
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.paths import ROOT
from tests.support.stores import KINDS, empty_place
from tests.support.waiting import HANG_S, wait_for

NEVER_S = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> AdapterStore:
    return open_store(str(tmp_path / "store"))


def writer_on(store: Any, *, batch: int = 1000, delay_s: float = NEVER_S, most_waiting: int = 1000) -> BatchWriter:
    return BatchWriter(store, "kept/", name="w", batch=batch, delay_s=delay_s, most_waiting=most_waiting)


def stored(store: AdapterStore) -> list[int]:
    files = [store.get(info.key).data for info in store.list("kept/")]
    return [json.loads(line)["n"] for data in files for line in data.splitlines()]


def add(writer: BatchWriter, *numbers: int) -> list[bool]:
    return [writer.add(json.dumps({"n": number})) for number in numbers]


def break_store(folder: Path) -> Path:
    """A folder in which nothing can be written below kept/: a file is in the way. Returns that."""
    folder.mkdir(exist_ok=True)
    obstacle = folder / "kept"
    obstacle.write_text("")
    return obstacle


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_end_loses_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = open_store(empty_place(kind, request, tmp_path))
    writer = writer_on(store, batch=7)
    add(writer, *range(50))
    assert writer.close(HANG_S)
    assert sorted(stored(store)) == list(range(50))
    assert (writer.counts.written, writer.counts.dropped, writer.counts.waiting) == (50, 0, 0)
    assert add(writer, 50) == [False]


def test_a_batch_is_written_when_it_is_full_and_not_before(folder: AdapterStore) -> None:
    writer = writer_on(folder, batch=10)
    add(writer, *range(9))
    assert writer.counts.waiting == 9
    assert stored(folder) == []
    add(writer, 9)
    wait_for(lambda: writer.counts.written == 10, "batch")
    assert stored(folder) == list(range(10))


def test_a_record_alone_is_written_after_the_delay(folder: AdapterStore) -> None:
    writer = writer_on(folder, delay_s=0.01)
    for number in range(3):
        add(writer, number)
        wait_for(lambda: not writer.counts.waiting, "write")
    assert stored(folder) == [0, 1, 2]
    assert len(folder.list("kept/")) == 1  # the file grows


def test_a_large_file_is_followed_by_another(folder: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "FILE_BYTES", 20)
    writer = writer_on(folder)
    for number in range(6):
        add(writer, number)
        assert writer.flush(HANG_S)
    assert stored(folder) == list(range(6))
    assert [info.key.rpartition("/")[2] for info in folder.list("kept/")] == ["w-1.jsonl", "w-2.jsonl"]


def test_each_day_has_its_files(folder: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_on(folder)
    for number, day in enumerate((26, 26, 27)):
        noon = datetime(2026, 11, day, 12, tzinfo=UTC)
        monkeypatch.setattr(batches, "datetime", SimpleNamespace(now=lambda _, noon=noon: noon))
        add(writer, number)
    assert writer.close(HANG_S)
    assert [info.key for info in folder.list("kept/")] == ["kept/2026-11-26/w-1.jsonl", "kept/2026-11-27/w-2.jsonl"]
    assert stored(folder) == [0, 1, 2]


def test_an_outage_drops_only_what_is_beyond_the_bound(folder: AdapterStore, caplog: pytest.LogCaptureFixture) -> None:
    obstacle = break_store(Path(folder.uri))
    writer = writer_on(folder, most_waiting=3)
    with caplog.at_level(logging.INFO, "dlp_core"):
        assert add(writer, 0) == [True]
        assert not writer.flush(HANG_S)
        assert isinstance(writer.failure, StoreUnavailable)
        assert add(writer, 1, 2, 3, 4) == [True, True, False, False]
        assert (writer.counts.written, writer.counts.dropped, writer.counts.waiting) == (0, 2, 3)
        obstacle.unlink()
        assert writer.flush(HANG_S)
    assert stored(folder) == [0, 1, 2]
    assert writer.failure is None
    assert "records of kept/ wait in memory, 1 now: object 'kept/" in caplog.text
    assert "records of kept/ are dropped, 1 so far" in caplog.text
    assert "records of kept/ are written again; 2 were dropped" in caplog.text


def test_the_writer_tries_again_by_itself(folder: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "RETRY_S", (0.01, 0.02))
    obstacle = break_store(Path(folder.uri))
    writer = writer_on(folder, delay_s=0.01)
    add(writer, 0)
    wait_for(lambda: writer.failure, "failure")
    obstacle.unlink()
    wait_for(lambda: writer.counts.written, "write")
    assert stored(folder) == [0]


def test_an_end_during_an_outage_says_what_is_lost(folder: AdapterStore, caplog: pytest.LogCaptureFixture) -> None:
    break_store(Path(folder.uri))
    writer = writer_on(folder)
    add(writer, 0, 1)
    assert not writer.close(0.2)
    assert "records of kept/ are lost, 2 of them: object 'kept/" in caplog.text


class LosesAnswers:
    """A store that writes and then does not say so, once."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes, **conditions: Any) -> str:
        etag = self._store.put(key, body, **conditions)
        if not self._lost:
            self._lost = True
            raise StoreUnavailable("the connection was closed")
        return etag


def test_a_write_whose_answer_is_lost_is_not_made_twice() -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    writer = writer_on(LosesAnswers(store))
    add(writer, 0)
    assert not writer.flush(HANG_S)
    assert writer.flush(HANG_S)
    assert stored(store) == [0]


def test_a_file_that_somebody_changed_stays_as_they_left_it(folder: AdapterStore) -> None:
    writer = writer_on(folder)
    add(writer, 0, 1)
    assert writer.flush(HANG_S)
    [file] = folder.list("kept/")
    folder.put(file.key, b'{"n": 1}\n')
    add(writer, 2)
    assert writer.flush(HANG_S)
    folder.delete(folder.list("kept/")[1].key)
    add(writer, 3)
    assert writer.flush(HANG_S)
    assert stored(folder) == [1, 3]


def test_a_kill_loses_no_more_than_may_wait(folder: AdapterStore) -> None:
    most_waiting = 20
    command = [sys.executable, "-m", "tests.support.kept_until_killed", folder.uri, str(most_waiting)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        taken = [int(process.stdout.readline()) for _ in range(200)]
        process.kill()
        taken += [int(line) for line in process.stdout if line.endswith("\n")]
    files = [folder.get(info.key).data for info in folder.list("feedback/")]
    written = {json.loads(line)["id"] for data in files for line in data.splitlines()}
    lost = [number for number in taken if f"fb-{number}" not in written]
    assert len(lost) <= most_waiting
    assert len(taken) >= 200
