"""`dlp feedback` as an operator meets it: rows for the router, numbers, and what is deleted for good."""

from __future__ import annotations

import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.feedback import AdapterShare, Feedback, KeptRequest
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.store.opening import open_store
from tests.deployments.cli.conftest import Run


def request(id: str, adapter: str | None, text: str, key: str = "a") -> KeptRequest:
    return KeptRequest(
        id=id,
        created=1.0,
        key=key,
        route="/v1/route",
        text=text,
        mix=() if adapter is None else (AdapterShare(adapter=adapter, weight=1.0),),
        reason="none_of_these" if adapter is None else "routed",
        confidence=0.5,
        bank="b1",
        router="r1",
        status=200,
        error_code=None,
        total_seconds=0.1,
        decide_seconds=0.1,
        first_token_seconds=0.1,
    )


REQUESTS = [
    request("route-1", "sql", "tomorrow at 8"),
    request("route-2", None, "all users", key="b"),
    request("route-3", "sql", "each user"),
]
FEEDBACK = [
    Feedback(id="fb-1", created=1.0, key="a", bank="b1", request_id="route-1", adapter="cron", rating="down"),
    Feedback(id="fb-2", created=2.0, key="b", bank="b1", request_id="route-2", adapter="sql"),
    Feedback(id="fb-3", created=3.0, key="b", bank="b1", text="tell me a joke", adapter=None),
    Feedback(id="fb-4", created=4.0, key="b", bank="b1", request_id="route-3", rating="up"),
]


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, command: Run, tmp_path: Path) -> Run:
    """Runs `dlp feedback ...` on a store with REQUESTS of one day and FEEDBACK of two; returns exit code, stdout,
    stderr."""
    place = tmp_path / "store"
    monkeypatch.setenv("DLP_BANK", str(place))
    monkeypatch.setattr("sys.stdin", StringIO())

    def put(key: str, records: list[Any]) -> None:
        open_store(str(place)).put(key, "".join(f"{record.line()}\n" for record in records).encode())

    put("requests/2026-11-26/x-1.jsonl", REQUESTS)
    put("feedback/2026-11-26/x-1.jsonl", FEEDBACK[:1])
    put("feedback/2026-11-27/x-2.jsonl", FEEDBACK[1:])

    return partial(command, "feedback")


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def ids_in(store: Path) -> set[str]:
    return {json.loads(line)["id"] for path in store.rglob("*.jsonl") for line in path.read_text().splitlines()}


def test_rows_for_the_router(dlp: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    counts = json_of(dlp("export", "--out", str(path), "--json"))
    assert counts == {"bank": str(tmp_path / "store"), "out": str(path), "feedback": 4, "rows": 3}
    expected = [TaskRow("cron", "tomorrow at 8"), TaskRow("sql", "all users"), TaskRow(None, "tell me a joke")]
    assert read_task_rows([path]) == expected
    code, out, err = dlp("export")
    assert (code, out, err) == (0, path.read_text(), "")
    assert json.loads(out.splitlines()[0])["request"] == "route-1"
    dlp("export", "--since", "2026-11-27", "--out", str(path))
    assert read_task_rows([path]) == expected[1:]


def test_raw_feedback_has_its_request(dlp: Run) -> None:
    code, out, _ = dlp("export", "--raw")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, [line["id"] for line in lines]) == (0, ["fb-1", "fb-2", "fb-3", "fb-4"])
    assert lines[0]["request"]["text"] == "tomorrow at 8"
    assert (lines[2]["request"], lines[2]["adapter"]) == (None, None)
    assert "adapter" not in lines[3]


def test_numbers(dlp: Run) -> None:
    found = json_of(dlp("stats", "--json"))
    assert (found["feedback"], found["up"], found["down"], found["named"], found["requests_known"]) == (4, 1, 1, 3, 3)
    assert found["corrections"] == [
        {"served": "sql", "should": "cron", "count": 1},
        {"served": None, "should": "sql", "count": 1},
    ]
    assert found["confusions"] == [{"adapters": ["cron", "sql"], "count": 1}]
    assert found["abstentions_corrected"] == 1
    sql = {"adapter": "sql", "up": 1, "down": 1, "confirmed": 0, "lost": 1, "gained": 1}
    assert sql in found["adapters"]
    code, out, _ = dlp("stats")
    assert code == 0
    assert "4 pieces of feedback: 1 up, 1 down, 3 say what should have answered" in out
    assert "(none)" in out


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("--key b", "route-1 route-3 fb-1"),
        ("--id route-1", "route-2 route-3 fb-2 fb-3 fb-4"),
        ("--id fb-3", "route-1 route-2 route-3 fb-1 fb-2 fb-4"),
        ("--before 2026-11-27", "fb-2 fb-3 fb-4"),
        ("--before 2026-11-27 --key b", "route-1 route-3 fb-1 fb-2 fb-3 fb-4"),
    ],
)
def test_what_is_purged_is_gone(dlp: Run, tmp_path: Path, options: str, left: str) -> None:
    store = tmp_path / "store"
    before = ids_in(store)
    code, _, err = dlp("purge", *options.split())
    assert (code, ids_in(store)) == (2, before)
    assert f"this deletes {len(before - {*left.split()})} records" in " ".join(err.split())
    assert json_of(dlp("purge", *options.split(), "--yes", "--json"))["records"] == len(before - {*left.split()})
    assert ids_in(store) == {*left.split()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["purge", "--yes"], "say what to delete"),
        (["purge", "--before", "yesterday", "--yes"], "'yesterday' is not a day"),
        (["export", "--since", "2026-13-01"], "'2026-13-01' is not a day"),
        (["export", "--json"], "--out FILE"),
        (["export", "--out", "nowhere/rows.jsonl"], "nowhere/rows.jsonl"),
        (["stats", "--bank", "s4://bucket/"], "must be s3://"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(dlp: Run, arguments: list[str], words: str) -> None:
    code, out, err = dlp(*arguments)
    assert code in (1, 2)
    assert out == ""
    assert words in " ".join(err.split())
    assert err.startswith("dlp: ")
    assert err.count("\n") == 1
