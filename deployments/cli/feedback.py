"""`dlp feedback`: what people said about a bank's answers, as rows for its router, in numbers, and deleted."""

from __future__ import annotations

import json as to_json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.options import Bank, Json, Yes
from dlp_core.errors import InvalidRequest
from dlp_core.store.opening import open_store

if TYPE_CHECKING:
    from dlp_core.bank.feedback import Feedback, KeptRequest, Summary
    from dlp_core.store.protocol import AdapterStore

app = typer.Typer(help="Feedback on a bank's answers.", no_args_is_help=True)

Since = Annotated[str | None, typer.Option(metavar="DAY", help="Only from this day on, such as 2026-11-27, in UTC.")]

BACKBONE = "(none)"
_SHOWN = 20
"""Corrections in the table."""


@app.command()
def export(
    *,
    bank: Bank,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: stdout.")] = None,
    since: Since = None,
    raw: Annotated[
        bool, typer.Option(help="All feedback as it was given, each with its request, in place of rows.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the prompts whose adapter people named, as the JSON lines that `dlp router train` reads."""
    from dlp_core.bank.feedback import rows

    if json and out is None:
        raise InvalidRequest("--json prints the counts on stdout, where the rows go; --out FILE takes those")
    store = open_store(bank)
    feedback, requests = _read(store, _day(since))
    lines: list[dict[str, Any]]
    if raw:
        lines = [_with_request(entry, requests) for entry in feedback]
    else:
        lines = [
            {"task": row.task, "input": row.input, "feedback": row.feedback, "request": row.request}
            for row in rows(feedback, requests)
        ]
    with _opened(out) as file:
        for line in lines:
            file.write(to_json.dumps(line, ensure_ascii=False) + "\n")
    if json:
        terminal.print_json({"bank": store.uri, "out": str(out), "feedback": len(feedback), "rows": len(lines)})
    elif out is not None:
        left = "" if raw else f"; {len(feedback)} pieces of feedback in all"
        terminal.say(f"{escape(str(out))} has {len(lines)} rows{left}")


@app.command()
def stats(*, bank: Bank, since: Since = None, json: Json = False) -> None:
    """Show what was said of each adapter's answers, and what should have answered instead."""
    from dlp_core.bank.feedback import summarise

    store = open_store(bank)
    summary = summarise(*_read(store, _day(since)))
    if json:
        confusions = [{"adapters": [a, b], "count": count} for a, b, count in summary.confusions]
        extra = {"confusions": confusions, "abstentions_corrected": summary.abstentions_corrected}
        terminal.print_json({"bank": store.uri, **asdict(summary), **extra})
        return
    _print(summary)


@app.command()
def purge(
    *,
    bank: Bank,
    before: Annotated[
        str | None, typer.Option(metavar="DAY", help="Records of the days before this one, in UTC.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Records of this API key.")] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="A request with the feedback on it, or a piece of feedback.")
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete feedback and kept requests for good. Several options together mean the records that fit them all."""
    from dlp_core.bank.kept import parse_day
    from dlp_core.bank.kept import purge as purge_kept

    if before is None and key is None and id is None:
        raise InvalidRequest("say what to delete: --before DAY, --key NAME or --id ID")
    store = open_store(bank)
    chosen: dict[str, Any] = {"before": None if before is None else parse_day(before), "key": key, "id": id}
    if not yes:
        there = purge_kept(store, **chosen, dry_run=True)
        what = f"{there.records} records in {there.files} files of {store.uri}"
        if json or not sys.stdin.isatty():
            raise InvalidRequest(f"this deletes {what}; --yes does it")
        if not typer.confirm(f"Delete {what}?", err=True):
            raise InvalidRequest("nothing was deleted")
    with terminal.progress("purge") as bar:
        purged = purge_kept(store, **chosen, progress=bar.report)
    if json:
        terminal.print_json({"bank": store.uri, **asdict(purged)})
        return
    terminal.say(f"{purged.records} records were deleted from {purged.files} files of {escape(store.uri)}")


def _day(text: str | None) -> date | None:
    from dlp_core.bank.kept import parse_day

    return None if text is None else parse_day(text)


def _read(store: AdapterStore, since: date | None) -> tuple[list[Feedback], dict[str, KeptRequest]]:
    """Feedback from a day on, and the requests it is about, by id: they may be older."""
    from dlp_core.bank.feedback import Feedback, KeptRequest
    from dlp_core.bank.kept import FEEDBACK, REQUESTS, read

    feedback = read(store, FEEDBACK, Feedback, since=since)
    about = {entry.request_id for entry in feedback if entry.request_id is not None}
    return feedback, {request.id: request for request in read(store, REQUESTS, KeptRequest, ids=about)}


def _with_request(entry: Feedback, requests: Mapping[str, KeptRequest]) -> dict[str, Any]:
    known = requests.get(entry.request_id or "")
    return {**entry.public(), "request": None if known is None else known.model_dump()}


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with path.open("w", encoding="utf-8") as file:
        yield file


def _print(summary: Summary) -> None:
    terminal.say(
        f"{summary.feedback} pieces of feedback: {summary.up} up, {summary.down} down, {summary.named} say what should "
        f"have answered. About {summary.requests_known} kept requests:"
    )
    table = Table("answered", "up", "down", "confirmed", "another was right", "should have answered")
    for entry in summary.adapters:
        counts = (entry.up, entry.down, entry.confirmed, entry.lost, entry.gained)
        table.add_row(_name(entry.adapter), *map(str, counts))
    if summary.adapters:
        terminal.out.print(table)
    if summary.corrections:
        table = Table("answered", "should have", "requests")
        for correction in summary.corrections[:_SHOWN]:
            table.add_row(_name(correction.served), _name(correction.should), str(correction.count))
        terminal.out.print(table)


def _name(adapter: str | None) -> str:
    return BACKBONE if adapter is None else escape(adapter)
