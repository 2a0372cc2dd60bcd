"""What is kept of feedback and requests: read, counted, turned into rows, deleted, and left alone by all else."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.feedback import AdapterShare, Feedback, KeptRequest, by_request, rows, standing, summarise
from dlp_core.bank.kept import FEEDBACK, REQUESTS, KeptRecord, expire, parse_day, purge, read, today
from dlp_core.bank.publish import publish
from dlp_core.bank.pull import pull
from dlp_core.bank.retention import collect
from dlp_core.errors import InvalidRequest
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.store.batches import BatchWriter
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import write_bank
from tests.support.stores import KINDS, empty_place
from tests.support.waiting import HANG_S


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    return open_store(empty_place(request.param, request, tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> AdapterStore:
    return open_store(str(tmp_path / "store"))


def feedback(id: str, *, key: str = "a", created: float = 0.0, **given: Any) -> Feedback:
    about = {} if "text" in given else {"request_id": "r1"}
    return Feedback(id=id, created=created, key=key, bank="b1", **about | given)


def request(id: str, *mix: str, key: str = "a", text: str = "a prompt") -> KeptRequest:
    return KeptRequest(
        id=id,
        created=0.0,
        key=key,
        route="/v1/route",
        text=text,
        mix=tuple(AdapterShare(adapter=name, weight=1 / (n + 1)) for n, name in enumerate(mix)),
        reason="routed" if mix else "none_of_these",
        confidence=0.9,
        bank="b1",
        router="r1",
        status=200,
        error_code=None,
        total_seconds=0.1,
        decide_seconds=0.01,
        first_token_seconds=None,
    )


def put(store: AdapterStore, key: str, *records: KeptRecord) -> None:
    store.put(key, "".join(f"{record.line()}\n" for record in records).encode())


def ids(store: AdapterStore, prefix: str = FEEDBACK, kind: type[KeptRecord] = Feedback, **days: date) -> list[str]:
    return [record.id for record in read(store, prefix, kind, **days)]


# --- reading


def test_null_is_an_opinion_and_absence_is_none() -> None:
    nobody, rated = feedback("1", adapter=None), feedback("2", rating="up")
    assert (nobody.corrects, rated.corrects) == (True, False)
    for entry in (nobody, rated):
        again = Feedback.model_validate_json(entry.line())
        assert (again, again.corrects) == (entry, entry.corrects)


def test_records_are_read_by_day_once_each_and_in_order(store: AdapterStore) -> None:
    one, two, three = (feedback(str(number), created=float(number)) for number in (1, 2, 3))
    put(store, "feedback/2026-11-26/x-1.jsonl", two)
    put(store, "feedback/2026-11-27/x-2.jsonl", three, one)
    put(store, "feedback/2026-11-27/y-1.jsonl", one)
    put(store, "feedback/notes/readme.jsonl", feedback("not ours"))
    assert ids(store) == ["1", "2", "3"]
    assert ids(store, since=date(2026, 11, 27), until=date(2026, 11, 27)) == ["1", "3"]
    assert ids(store, until=date(2026, 11, 26)) == ["2"]
    assert ids(store, since=date(2026, 11, 28)) == []
    assert [record.id for record in read(store, FEEDBACK, Feedback, ids={"3", "2", "4"})] == ["2", "3"]


def test_a_damaged_line_is_skipped_and_said(folder: AdapterStore, caplog: pytest.LogCaptureFixture) -> None:
    line = json.dumps({**json.loads(feedback("1").line()), "field_of_a_later_version": 1})
    folder.put("feedback/2026-11-27/x-1.jsonl", f"{{\n{line}\n".encode())
    with caplog.at_level(logging.WARNING, "dlp_core"):
        assert ids(folder) == ["1"]
    assert "x-1.jsonl" in caplog.text
    assert "1 lines are not records" in caplog.text


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "20261127", "2026-W48-5"])
def test_a_day_is_a_day(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a day"):
        parse_day(text)


# --- what it says


def test_the_last_word_of_a_key_on_each_point_holds() -> None:
    said = [
        feedback("3", created=3.0, adapter="cron"),
        feedback("1", created=1.0, adapter="sql", rating="down"),
        feedback("2", created=2.0, rating="up", comment="better"),
        feedback("4", created=4.0, key="b", adapter=None),
        feedback("5", created=5.0, text="a text", adapter="sql"),
    ]
    assert [(e.id, e.key, e.adapter, e.rating, e.comment) for e in standing(said)] == [
        ("3", "a", "cron", "up", "better"),
        ("4", "b", None, None, None),
        ("5", "a", "sql", None, None),
    ]
    assert {request: [e.id for e in entries] for request, entries in by_request(said).items()} == {"r1": ["3", "4"]}


def test_rows_train_a_router(tmp_path: Path) -> None:
    requests = {"r1": request("r1", "sql", text="tomorrow at 8"), "r2": request("r2", text="tell me a joke")}
    said = [
        feedback("1", created=1.0, adapter="cron"),
        feedback("2", created=2.0, key="admin", adapter="dates"),
        feedback("3", created=3.0, rating="up"),  # by the first key, and says nothing about adapters
        feedback("4", request_id="r2", adapter=None),
        feedback("5", request_id="unknown", adapter="sql"),
        feedback("6", request_id="r2", key="b", rating="down"),
        feedback("7", text="all users", adapter="sql"),
    ]
    found = rows(said, requests)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in found))
    assert sorted(read_task_rows([path]), key=lambda row: row.input) == [
        TaskRow("sql", "all users"),
        TaskRow(None, "tell me a joke"),
        TaskRow("dates", "tomorrow at 8"),
    ]


def test_feedback_in_numbers() -> None:
    requests = {
        **{f"s{n}": request(f"s{n}", "sql", "cron") for n in range(4)},
        "c": request("c", "cron"),
        "n": request("n"),
    }
    said = [
        feedback("1", request_id="s0", adapter="cron", rating="down"),
        feedback("2", request_id="s1", adapter="cron"),
        feedback("3", request_id="s2", adapter=None),
        feedback("4", request_id="s3", adapter="sql", rating="up"),
        feedback("5", request_id="c", adapter="sql"),
        feedback("6", request_id="n", adapter="cron"),
        feedback("7", request_id="unknown", adapter="cron", rating="up"),
        feedback("8", text="x", adapter="cron"),
    ]
    summary = summarise(said, requests)
    assert (summary.feedback, summary.up, summary.down, summary.named, summary.requests_known) == (8, 2, 1, 8, 6)
    assert [(c.served, c.should, c.count) for c in summary.corrections] == [
        ("sql", "cron", 2),
        ("sql", None, 1),
        ("cron", "sql", 1),
        (None, "cron", 1),
    ]
    assert summary.confusions == (("cron", "sql", 3),)
    assert summary.abstentions_corrected == 1
    assert {o.adapter: (o.up, o.down, o.confirmed, o.lost, o.gained) for o in summary.adapters} == {
        "cron": (0, 0, 0, 1, 3),
        "sql": (1, 1, 1, 3, 1),
        None: (0, 0, 0, 1, 1),
    }


# --- deleting


def test_purge_deletes_what_is_meant_and_nothing_else(store: AdapterStore) -> None:
    put(store, "feedback/2026-11-26/x-1.jsonl", feedback("1"), feedback("2", key="b", request_id="r2"))
    put(store, "feedback/2026-11-27/x-1.jsonl", feedback("3", key="b", request_id="r3"))
    put(store, "requests/2026-11-26/x-1.jsonl", request("r1", key="a"), request("r2", key="b"), request("r3", key="b"))
    before = {info.key: info.etag for info in store.list()}

    assert (purge(store, key="b", dry_run=True).records, purge(store, key="nobody").records) == (4, 0)
    assert {info.key: info.etag for info in store.list()} == before

    gone = purge(store, id="r1")  # the request, and what was said about it
    assert (gone.records, gone.files) == (2, 2)
    assert ids(store) == ["2", "3"]
    assert ids(store, REQUESTS, KeptRequest) == ["r2", "r3"]
    assert purge(store, id="r2", key="a").records == 0
    assert purge(store, before=date(2026, 11, 27), key="b").records == 3
    assert ids(store) == ["3"]
    assert [info.key for info in store.list()] == ["feedback/2026-11-27/x-1.jsonl"]
    assert purge(store, id="3").records == 1
    assert store.list() == []


def test_what_is_purged_while_a_server_writes_stays_away(store: AdapterStore) -> None:
    writer = BatchWriter(store, FEEDBACK, name="w", batch=1000, delay_s=3600.0, most_waiting=1000)

    def write(*entries: Feedback) -> None:
        for entry in entries:
            writer.add(entry.line())
        assert writer.flush(HANG_S)

    write(feedback("1"), feedback("2", key="b"))
    assert purge(store, key="b").records == 1
    write(feedback("3"))
    assert purge(store, id="1").records == 1  # the file has nothing left
    write(feedback("4", created=4.0))
    assert ids(store) == ["3", "4"]
    assert writer.close(HANG_S)


def test_days_that_are_over_are_deleted(store: AdapterStore) -> None:
    for age in (29, 30, 31):
        day = today() - timedelta(days=age)
        put(store, f"feedback/{day}/x-1.jsonl", feedback(str(age)))
        put(store, f"requests/{day}/x-1.jsonl", request(str(age)))
    store.put("feedback/notes/readme", b"not ours")
    assert expire(store, days=30) == 2
    assert sorted(ids(store)) == ["29", "30"]
    assert sorted(ids(store, REQUESTS, KeptRequest)) == ["29", "30"]
    assert store.get("feedback/notes/readme").data == b"not ours"


def test_publishing_collecting_and_pulling_leave_it_alone(folder: AdapterStore, tmp_path: Path) -> None:
    put(folder, "feedback/2026-11-27/x-1.jsonl", feedback("1"))
    put(folder, "requests/2026-11-27/x-1.jsonl", request("r1"))
    for seed in range(3):
        publish(folder, write_bank(tmp_path / f"bank{seed}", seed=seed, router=False))
    assert collect(folder, keep=0).keys
    pull(folder, tmp_path / "pulled")
    assert (ids(folder), ids(folder, REQUESTS, KeptRequest)) == (["1"], ["r1"])
    assert not {"feedback", "requests"} & {path.name for path in (tmp_path / "pulled").iterdir()}
