"""The rows of a run: whose word counts, what is held back, what adds up, and what a purge takes."""

from __future__ import annotations

from datetime import date

from dlp_core.bank.kept import purge
from dlp_core.improve.rows import (
    FeedbackRow,
    is_held_back,
    read_base,
    read_rows,
    said_by,
    save_base,
    split_base,
    write_rows,
)
from dlp_core.improve.run import Run, now
from dlp_core.router.rows import TaskRow
from dlp_core.store.memory import MemoryStore
from tests.support.improving import give, request, said


def a_run(number: int = 1) -> Run:
    return Run(number=number, began=now(), bank="b", base="d", seed=0, changed=now())


def test_the_label_that_most_keys_gave_counts_and_of_equally_many_the_last() -> None:
    store = MemoryStore("rows")
    give(
        store,
        request("r1", "first prompt"),
        request("r2", "second prompt"),
        said("1", key="a", created=1.0, request_id="r1", adapter="cron"),
        said("2", key="b", created=2.0, request_id="r1", adapter="cron"),
        said("3", key="c", created=3.0, request_id="r1", adapter="sql"),
        said("4", key="a", created=1.0, request_id="r2", adapter="cron"),
        said("5", key="b", created=2.0, request_id="r2", adapter=None),
    )
    assert {(row.input, row.task, row.agreed) for row in said_by(store, 9.0)} == {
        ("first prompt", "cron", 2),
        ("second prompt", None, 1),
    }


def test_a_good_answer_of_one_adapter_confirms_it() -> None:
    store = MemoryStore("confirmed")
    give(
        store,
        request("good", "one", "cron"),
        request("mixed", "two", "cron", "sql"),
        request("base", "three"),
        request("disputed", "four", "cron"),
        request("corrected", "five", "cron"),
        *(said(f"up-{id}", request_id=id, rating="up") for id in ("good", "mixed", "base", "disputed", "corrected")),
        said("down", key="b", request_id="disputed", rating="down"),
        said("fix", key="b", request_id="corrected", adapter="sql"),
    )
    assert {(row.input, row.task, row.confirmed) for row in said_by(store, 9.0)} == {
        ("one", "cron", True),
        ("five", "sql", False),
    }


def test_what_is_said_later_belongs_to_the_next_run() -> None:
    store = MemoryStore("later")
    give(
        store, said("1", text="early", adapter="cron", created=5.0), said("2", text="late", adapter="cron", created=6.0)
    )
    assert [row.input for row in said_by(store, 5.0)] == ["early"]


def test_a_row_is_held_back_by_its_text_alone() -> None:
    texts = [f"prompt number {n}" for n in range(2000)]
    held_back = [text for text in texts if is_held_back(text)]
    assert 240 < len(held_back) < 360
    assert all(is_held_back(f"  {text.upper()} ") for text in held_back)
    rows = [TaskRow("many", text) for text in texts] + [TaskRow("few", text) for text in held_back[:20]]
    training, judging = split_base(rows)
    assert {row.input for row in judging} == set(held_back)
    assert sum(row.task == "few" for row in training) == 20
    assert len(training) + len(judging) == len(rows)


def test_base_rows_come_back_and_are_stored_once() -> None:
    store = MemoryStore("base")
    rows = [TaskRow("cron", "über uns\n"), TaskRow(None, "x")]
    assert save_base(store, rows) == save_base(store, rows)
    assert read_base(store, save_base(store, rows)) == rows
    assert len(store.list("improve/")) == 1


def test_a_purge_takes_what_was_learnt_too() -> None:
    store = MemoryStore("purge")
    row = FeedbackRow(
        id="fb1", created=86400.0 * 20000, key="reviewer", task="cron", input="private", request_id="r1",
        request_key="app", agreed=1, confirmed=False,
    )  # fmt: skip

    def left(**chosen: object) -> list[str]:
        others = [row.model_copy(update={"id": "fb2", "request_id": "r2", "key": "x", "request_key": "y"})]
        write_rows(store, a_run(), [row, *others])
        purge(store, **chosen)  # type: ignore[arg-type]
        return [each.id for each in read_rows(store, a_run())]

    for chosen in ({"id": "r1"}, {"id": "fb1"}, {"key": "app"}, {"key": "reviewer"}):
        assert left(**chosen) == ["fb2"], chosen
    # the file has no day of its own: that of each row counts
    assert left(before=date(2024, 10, 4)) == ["fb1", "fb2"]
    assert left(before=date(2024, 10, 5)) == []
    assert left(key="app", before=date(2024, 10, 5)) == ["fb2"]
