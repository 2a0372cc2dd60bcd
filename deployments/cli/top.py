"""`dlp top`: what a running server does, as its metrics tell it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import terminal
from deployments.cli.options import Json, Key, Url
from dlp_core.errors import DLPError

if TYPE_CHECKING:
    from deployments.client.activity import Activity, Counts, Reading
    from deployments.client.server import Server

WINDOW_S = 20.0
"""What "now" is: replicas report every few seconds, 10 by Ray's default, and a shorter time would show that rhythm."""
BANK_S = 5.0
OTHER_LINES = 17
"""Lines of the screen that are not adapters."""


def top(
    *,
    url: Url = None,
    key: Key = None,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table and exit.")] = False,
    json: Json = False,
) -> None:
    """Watch a running server: its adapters, queue, tokens, times and errors, until Ctrl-C.

    Where the server has keys, --key is the admin token. With --json, each reading is one line."""
    from deployments.client.server import DEFAULT_URL, Server

    with Server(url or DEFAULT_URL, key=key) as server:
        watch = Watch(server)
        watch.read()
        if once:
            _print(watch, json=json)
            return
        try:
            if json or not terminal.out.is_terminal:
                while True:
                    _print(watch, json=json)
                    time.sleep(interval)
                    watch.read()
            _live(watch, interval)
        except KeyboardInterrupt:
            return


class Watch:
    """The readings of the last WINDOW_S, and the bank."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.bank: dict[str, Any] = {}
        self.problem: str | None = None
        """Why the last reading failed, of a server that answered before."""
        self._bank_at = float("-inf")
        self._readings: deque[Reading] = deque()

    def read(self) -> None:
        """Take a reading. Raises what Server raises."""
        from deployments.client.activity import Reading
        from deployments.client.server import Unreachable

        now = time.monotonic()
        try:
            reading = Reading.of(self.server.text("/metrics"), now)
        except ValueError:
            raise Unreachable(f"{self.server.url}/metrics is not of a dlp server; name one with --url") from None
        if now - self._bank_at >= BANK_S:
            self.bank, self._bank_at = self._read_bank(), now
        self._readings.append(reading)
        while len(self._readings) > 2 and self._readings[1].at <= now - WINDOW_S:
            self._readings.popleft()

    def _read_bank(self) -> dict[str, Any]:
        from deployments.client.server import Refused

        try:
            return self.server.json("/v1/bank")
        except Refused:  # not ready, or not for the metrics token: what the metrics say holds all the same
            return {}

    def activity(self) -> Activity:
        from deployments.client.activity import Activity

        first, last = self._readings[0], self._readings[-1]
        return Activity.of(last, first if len(self._readings) > 1 else None)


def _print(watch: Watch, *, json: bool) -> None:
    if json:
        bank = {"version": watch.bank.get("version"), "adapters": len(watch.bank.get("adapters", ()))}
        terminal.print_json({"url": watch.server.url, "bank": bank, **watch.activity().as_dict()})
    else:
        terminal.out.print(view(watch, rows=None))


def _live(watch: Watch, interval: float) -> None:
    from rich.live import Live

    def drawn() -> Group:
        return view(watch, rows=max(terminal.out.height - OTHER_LINES, 1))

    with Live(drawn(), console=terminal.out, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            try:
                watch.read()
                watch.problem = None
            except DLPError as error:
                watch.problem = error.message
            live.update(drawn(), refresh=True)


def view(watch: Watch, *, rows: int | None) -> Group:
    """All of it, in 80 columns, with at most `rows` adapters."""
    activity = watch.activity()
    version, names = watch.bank.get("version"), watch.bank.get("adapters", ())
    bank = f"bank {version}, {len(names)} adapters" if version else "bank unknown"
    lines = [
        Text.from_markup(f"[bold]{escape(watch.server.url)}[/]  {escape(bank)}"),
        Text(_state(activity)),
        *(Text(line, style="yellow") for line in _warnings(activity)),
        *([Text(watch.problem, style="red")] if watch.problem else []),
    ]
    return Group(*lines, Text(), _counts(activity), Text(), _adapters(activity, rows))


def _state(activity: Activity) -> str:
    replicas = ", ".join(f"{count} {name}" for name, count in activity.replicas.items()) or "none seen"
    tiers = ", ".join(f"{count} {tier}" for tier, count in activity.resident.items())
    cache = "" if activity.cache_use is None else f"   cache {activity.cache_use:.0%}"
    return (
        f"replicas {replicas}\nadapters {tiers}\n"
        f"requests {activity.running} running, {activity.waiting} waiting for adapters{cache}"
    )


def _warnings(activity: Activity) -> list[str]:
    lines = []
    if activity.errors:
        lines.append("errors   " + ", ".join(f"{count} {code}" for code, count in activity.errors.items()))
    if activity.missing_nodes:
        lines.append(f"{activity.missing_nodes} nodes did not answer: what they do is missing here")
    return lines


def _counts(activity: Activity) -> Table:
    """What happened lately, where there is an earlier reading, and in all."""
    recent, total, seconds = activity.recent, activity.total, activity.seconds
    table = Table("", box=None, pad_edge=False)
    if recent is not None:
        table.add_column(f"last {seconds:.0f} s", justify="right", min_width=16)
    table.add_column("in all", justify="right", min_width=16)

    def count(title: str, of: Callable[[Counts], int]) -> None:
        rate = [f"{of(recent) / seconds:,.1f}/s"] if recent is not None and seconds else []
        table.add_row(title, *rate, f"{of(total):,}")

    def times(title: str, of: Callable[[Counts], tuple[float, float] | None]) -> None:
        lately = [] if recent is None else [_times(of(recent))]
        table.add_row(f"{title}, median / 95%", *lately, _times(of(total)))

    count("requests", lambda counts: counts.requests)
    count("errors", lambda counts: counts.errors)
    count("tokens read", lambda counts: counts.prompt_tokens)
    count("tokens written", lambda counts: counts.completion_tokens)
    times("first token", lambda counts: counts.first_token)
    times("between tokens", lambda counts: counts.between_tokens)
    return table


def _times(spread: tuple[float, float] | None) -> str:
    return "-" if spread is None else f"{spread[0] * 1e3:,.0f} / {spread[1] * 1e3:,.0f} ms"


def _adapters(activity: Activity, rows: int | None) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("adapter", no_wrap=True, overflow="ellipsis", max_width=44)
    rates = ["hits/s"] if activity.recent is not None else []
    for title in ("in slots of", *rates, "hits", "loads"):
        table.add_column(title, justify="right")
    shown = activity.adapters[:rows]
    for one in shown:
        rate = [] if one.hits_per_second is None else [f"{one.hits_per_second:.2f}"]
        cells = (f"{one.in_slots or '-'}", *rate, f"{one.hits:,}", f"{one.loads:,}")
        table.add_row(Text(one.name), *cells, style="" if one.in_slots else "dim")
    if left := len(activity.adapters) - len(shown):
        table.add_row(f"and {left} more", style="dim")
    return table
