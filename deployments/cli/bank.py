"""`dlp bank`: publish a folder as the bank that serves, look at what is published, verify it, roll back, clean up."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.options import Bank, Json
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore

app = typer.Typer(help="Publish banks and look after them.", no_args_is_help=True)

Version = Annotated[str | None, typer.Argument(help="A bank version; the one that serves when left out.")]


@app.command()
def publish(
    folder: Annotated[
        str,
        typer.Argument(
            help="Bank folder: bank.json, adapters/<name>/, router/. Here, or s3://bucket/path/ of one.",
            metavar="FOLDER|URI",
        ),
    ],
    bank: Bank,
    version: Annotated[str | None, typer.Option(help="Name of this bank version; by default its content's.")] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(envvar="DLP_BASE_MODEL", help="Folder of the base model: also check that every adapter fits it."),
    ] = None,
    json: Json = False,
) -> None:
    """Validate a bank folder, upload what is new, and let it serve."""
    from dlp_core.bank.publish import publish as publish_bank

    store = open_store(bank)
    check = None
    if base_model is not None:
        from dlp_core.adapter.checks import check_fits
        from dlp_core.fusion.layers import read_shapes

        check = partial(check_fits, layers=read_shapes(base_model))
    with terminal.progress(f"publish {folder}") as bar, local_copy(folder) as source:
        manifest = publish_bank(
            store,
            source,
            version=version,
            check=check,
            progress=bar.report,
        )
    if json:
        terminal.print_json({"bank": store.uri, "version": manifest.version, "adapters": len(manifest.adapters)})
        return
    _say(
        f"[bold]{manifest.version}[/] serves in {escape(store.uri)}: {len(manifest.adapters)} adapters, "
        f"{_bytes(manifest.size)}" + ("" if check else "; --base-model DIR would also check that they fit its layers")
    )


@app.command()
def show(bank: Bank, version: Version = None, json: Json = False) -> None:
    """Show one bank: its base model, router and adapters."""
    from dlp_core.bank.reading import load_manifest

    manifest = load_manifest(open_store(bank), version)
    if json:
        terminal.print_json(manifest.model_dump(mode="json"))
        return
    router = manifest.router.version if manifest.router else "none"
    _say(
        f"[bold]{manifest.version}[/] of {manifest.created:%Y-%m-%d %H:%M} UTC, base model "
        f"{escape(manifest.base_model.id)}, router {router}"
    )
    table = Table("adapter", "version", "rank", "modules", "size")
    for adapter in manifest.adapters:
        table.add_row(
            adapter.name, adapter.version, str(adapter.rank), ", ".join(adapter.modules), _bytes(adapter.size)
        )
    terminal.out.print(table)


@app.command("list")
def list_banks(bank: Bank, json: Json = False) -> None:
    """List every published version, newest first."""
    from dlp_core.bank.reading import list_versions

    versions = list_versions(open_store(bank))
    if json:
        terminal.print_json(
            [
                {
                    "version": found.version,
                    "created": found.created.isoformat(),
                    "adapters": found.adapters,
                    "size": found.size,
                    "current": found.current,
                    "pinned": found.pinned,
                }
                for found in versions
            ]
        )
        return
    table = Table("", "version", "created (UTC)", "adapters", "size")
    for found in versions:
        table.add_row(
            ", ".join(word for word, holds in (("serves", found.current), ("pinned", found.pinned)) if holds),
            found.version,
            f"{found.created:%Y-%m-%d %H:%M:%S}",
            str(found.adapters),
            _bytes(found.size),
        )
    terminal.out.print(table)


@app.command("diff")
def diff_banks(
    a: Annotated[str, typer.Argument(help="A bank version.")],
    b: Annotated[str, typer.Argument(help="The version to compare it with.")],
    bank: Bank,
    json: Json = False,
) -> None:
    """Show what changes when version B takes over from version A."""
    from dataclasses import asdict

    from dlp_core.bank.manifest import diff
    from dlp_core.bank.reading import load_manifest

    store = open_store(bank)
    found = diff(load_manifest(store, a), load_manifest(store, b))
    if json:
        terminal.print_json(asdict(found))
        return
    lines = [
        *(f"[green]+ {name}[/]" for name in found.added),
        *(f"[red]- {name}[/]" for name in found.removed),
        *(f"[yellow]~ {name}[/]" for name in found.changed),
        *(["[yellow]~ the router[/]"] if found.router_changed else []),
        *(["[yellow]~ the base model[/]"] if found.base_changed else []),
    ]
    _say("\n".join(lines) or "no difference")


@app.command("verify")
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
            _say(f"[red]{escape(problem)}[/]")
        verdict = f"{len(report.problems)} of them are not as published" if report.problems else "all as published"
        _say(f"[bold]{report.version}[/]: {report.files} files, {_bytes(report.size)}, {verdict}")
    if report.problems:
        raise typer.Exit(1)


@app.command("rollback")
def rollback_bank(
    bank: Bank,
    version: Annotated[str | None, typer.Argument(help="Where to; the bank before this one when left out.")] = None,
    json: Json = False,
) -> None:
    """Let an earlier version serve again. Nothing is uploaded or deleted."""
    from dlp_core.bank.publish import rollback

    store = open_store(bank)
    manifest = rollback(store, version)
    if json:
        terminal.print_json({"bank": store.uri, "version": manifest.version, "adapters": len(manifest.adapters)})
        return
    _say(f"[bold]{manifest.version}[/] serves in {escape(store.uri)}: {len(manifest.adapters)} adapters")


@app.command("pin")
def pin_bank(
    bank: Bank,
    version: Annotated[str, typer.Argument(help="The version `dlp bank gc` shall keep.")],
    json: Json = False,
) -> None:
    """Keep a version from being collected, until it is unpinned."""
    from dlp_core.bank.retention import pin

    store = open_store(bank)
    pin(store, version)
    _say_pins(store, json)


@app.command("unpin")
def unpin_bank(
    bank: Bank, version: Annotated[str, typer.Argument(help="A version that is pinned.")], json: Json = False
) -> None:
    """Let a version be collected again."""
    from dlp_core.bank.retention import unpin

    store = open_store(bank)
    unpin(store, version)
    _say_pins(store, json)


@app.command("gc")
def collect_garbage(
    bank: Bank,
    keep: Annotated[int, typer.Option(min=0, help="Newest versions to keep besides those that must stay.")] = 5,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be deleted.")] = False,
    json: Json = False,
) -> None:
    """Delete old versions and files nothing needs. The current, the previous and every pinned version stay."""
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
        _say(f"[red]- {version}[/]")
    verb = "would be deleted" if dry_run else "deleted"
    _say(
        f"{len(garbage.versions)} versions and {len(garbage.keys) - len(garbage.versions)} files {verb}, "
        f"{_bytes(garbage.size)}; kept: {', '.join(garbage.kept)}"
    )


def _say_pins(store: AdapterStore, json: bool) -> None:
    from dlp_core.bank.reading import current

    pinned = list(current(store)[0].pinned)
    if json:
        terminal.print_json({"bank": store.uri, "pinned": pinned})
        return
    _say(f"pinned in {escape(store.uri)}: {', '.join(pinned) or 'none'}")


def _say(line: str) -> None:
    terminal.out.print(line, highlight=False, soft_wrap=True)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
