"""`dlp bank canary`, `promote` and `shadow`: a second bank on trial beside the current one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from deployments import terminal
from deployments.cli.bank import ask_before_removal
from deployments.cli.options import Bank, Json, Yes
from dlp_core.errors import InvalidRequest
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore

if TYPE_CHECKING:
    from dlp_core.bank.difference import BankDiff

Tried = Annotated[
    str | None, typer.Argument(metavar="[VERSION]", help="A bank version; without one, only say how it goes.")
]
Stop = Annotated[bool, typer.Option("--stop", help="End it. The current bank stays.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `dlp bank`."""
    app.command("canary")(canary)
    app.command("promote")(promote_canary)
    app.command("shadow")(shadow)


def canary(
    bank: Bank,
    version: Tried = None,
    *,
    share: Annotated[float, typer.Option(help="Its share of the requests, between 0 and 1.")] = 0.05,
    sticky_by: Annotated[
        Literal["user", "key", "none"],
        typer.Option(help="What stays with one version: a request's `user`, an API key, or nothing."),
    ] = "user",
    promote_after_requests: Annotated[
        int | None, typer.Option(min=1, help="Promote it after so many of its requests without an alarm.")
    ] = None,
    promote_after_hours: Annotated[
        float | None,
        typer.Option(min=0.01, help="Promote it after so many hours without an alarm; with the above, both."),
    ] = None,
    stop: Stop = False,
    json: Json = False,
) -> None:
    """Let a version serve a share of the requests, on trial: a running server ends it if it does worse."""
    from dlp_core.bank.canary import start_canary, stop_canary

    _check_one(version, stop=stop)
    store = open_store(bank)
    if stop:
        stop_canary(store)
    elif version is not None:
        with terminal.progress("look up files") as bar:
            start_canary(
                store,
                version,
                share=share,
                sticky_by=sticky_by,
                promote_after_requests=promote_after_requests,
                promote_after_hours=promote_after_hours,
                progress=bar.report,
            )
    _say(store, json)


def promote_canary(bank: Bank, yes: Yes = False, json: Json = False) -> None:
    """Make the canary the current bank. Asks before adapters are removed."""
    from dlp_core.bank.canary import promote
    from dlp_core.bank.difference import diff
    from dlp_core.bank.reading import current, load_manifest

    store = open_store(bank)
    pointer = current(store)[0]
    if pointer.canary is not None:
        change: BankDiff = diff(load_manifest(store), load_manifest(store, pointer.canary.version))
        ask_before_removal(change, store, verb="promote", yes=yes, json=json)
    promote(store, id=None if pointer.canary is None else pointer.canary.id)
    _say(store, json)


def shadow(
    bank: Bank,
    version: Tried = None,
    *,
    generate: Annotated[bool, typer.Option("--generate", help="Compare answers too, not only mixes.")] = False,
    stop: Stop = False,
    json: Json = False,
) -> None:
    """Compare what a version would do with each request with what the current bank does. It answers nobody."""
    from dlp_core.bank.canary import start_shadow, stop_shadow

    _check_one(version, stop=stop)
    store = open_store(bank)
    if stop:
        stop_shadow(store)
    elif version is not None:
        with terminal.progress("look up files") as bar:
            start_shadow(store, version, generate=generate, progress=bar.report)
    _say(store, json)


def _check_one(version: str | None, *, stop: bool) -> None:
    if stop and version is not None:
        raise InvalidRequest("--stop ends what runs; leave out the version")


def _say(store: AdapterStore, json: bool) -> None:
    from dlp_core.bank.reading import current
    from dlp_core.bank.rollout import read_report

    report = read_report(store, current(store)[0])
    if json:
        terminal.print_json({"bank": store.uri, **report})
        return
    terminal.say(f"[bold]{report['serving']['version']}[/] serves in {escape(store.uri)}")
    if report["canary"] is not None:
        _say_canary(report["canary"])
    elif report["canary_end"] is not None:
        end = report["canary_end"]
        colour = "red" if end["outcome"] == "rolled_back" else "dim"
        outcome = end["outcome"].replace("_", " ")
        terminal.say(
            f"last canary: {end['version']}, [{colour}]{outcome}[/] {end['ended'][:16]}: {escape(end['reason'])}"
        )
    if report["shadow"] is not None:
        counts = report["shadow"]["counts"]
        terminal.say(
            f"shadow: [bold]{report['shadow']['version']}[/], the same adapters for {counts['same_mixes']:,} of "
            f"{counts['mixes']:,} requests"
            + (
                f", the same answer for {counts['same_answers']:,} of {counts['answers']:,}"
                if counts["answers"]
                else ""
            )
        )


def _say_canary(canary: dict[str, Any]) -> None:
    test = canary["test"]
    terminal.say(
        f"canary: [bold]{canary['version']}[/], {100 * canary['share']:g}% of requests since {canary['began'][:16]} "
        f"UTC, sticky by {canary['sticky_by']}; evidence against it 10^{test['evidence_log10']:.1f}, alarm at "
        f"10^{test['alarm_log10']:.0f}"
    )
    for role, counts in canary["counts"].items():
        terminal.say(
            f"  {role:8} {counts['requests']:,} requests, {counts['error']:,} errors, {counts['abstained']:,} without "
            f"an adapter, {counts['slow']:,} slow, {counts['negative']:,} of {counts['rated']:,} ratings negative"
        )
