"""`dlp bank verify`, `pin`, `unpin` and `gc`: whether what is stored is whole, and how long it stays."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from deployments import terminal
from deployments.cli.bank import Version, size_text
from deployments.cli.options import Bank, Json
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore


def add_to(app: typer.Typer) -> None:
    """Add the commands to `dlp bank`."""
    app.command("verify")(verify_bank)
    app.command("pin")(pin_bank)
    app.command("unpin")(unpin_bank)
    app.command("gc")(collect_garbage)


def verify_bank(bank: Bank, version: Version = None, json: Json = False) -> None:
    """Download every file of a bank and compare it with the manifest. Exit 1 if any differs."""
    from dlp_core.bank.publish import verify

    with terminal.progress("verify") as bar:
        report = verify(open_store(bank), version, progress=bar.report)
    if json:
        terminal.print_json(
            {
                "version": report.version,
                "files": report.files,
                "size": report.size,
                "problems": list(report.problems),
            }
        )
    else:
        for problem in report.problems:
            terminal.say(f"[red]{escape(problem)}[/]")
        verdict = f"{len(report.problems)} of them are not as published" if report.problems else "all as published"
        terminal.say(f"[bold]{report.version}[/]: {report.files} files, {size_text(report.size)}, {verdict}")
    if report.problems:
        raise typer.Exit(1)


def pin_bank(
    bank: Bank,
    version: Annotated[str, typer.Argument(help="The version for `dlp bank gc` to keep.")],
    json: Json = False,
) -> None:
    """Protect a version from garbage collection until it is unpinned."""
    from dlp_core.bank.retention import pin

    store = open_store(bank)
    pin(store, version)
    _say_pins(store, json)


def unpin_bank(
    bank: Bank, version: Annotated[str, typer.Argument(help="A pinned version.")], json: Json = False
) -> None:
    """Allow a version to be collected again."""
    from dlp_core.bank.retention import unpin

    store = open_store(bank)
    unpin(store, version)
    _say_pins(store, json)


def collect_garbage(
    bank: Bank,
    keep: Annotated[int, typer.Option(min=0, help="Newest versions to keep in addition to those that must stay.")] = 5,
    dry_run: Annotated[bool, typer.Option(help="Only show what would be deleted.")] = False,
    json: Json = False,
) -> None:
    """Delete old versions and unused files. The current, the previous and every pinned version stay, and a
    canary and shadow."""
    from dlp_core.bank.retention import collect

    store = open_store(bank)
    with terminal.progress("gc") as bar:
        garbage = collect(store, keep=keep, dry_run=dry_run, progress=bar.report)
    if json:
        terminal.print_json(
            {
                "bank": store.uri,
                "dry_run": dry_run,
                "kept": list(garbage.kept),
                "versions": list(garbage.versions),
                "objects": len(garbage.keys),
                "size": garbage.size,
            }
        )
        return
    for version in garbage.versions:
        terminal.say(f"[red]- {version}[/]")
    verb = "would be deleted" if dry_run else "deleted"
    terminal.say(
        f"{len(garbage.versions)} versions and {len(garbage.keys) - len(garbage.versions)} files {verb}, "
        f"{size_text(garbage.size)}; kept: {', '.join(garbage.kept)}"
    )


def _say_pins(store: AdapterStore, json: bool) -> None:
    from dlp_core.bank.reading import current

    pinned = list(current(store)[0].pinned)
    if json:
        terminal.print_json({"bank": store.uri, "pinned": pinned})
        return
    terminal.say(f"pinned in {escape(store.uri)}: {', '.join(pinned) or 'none'}")
