"""`dlp bank`: publish a folder as the current bank, show what is published, verify it, roll back, clean up."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.base_model import fetched, served
from deployments.cli.options import Bank, CheckedBaseModel, Json, SomeBaseModel, StrictNames, Yes
from deployments.cli.verdicts import as_lines, print_verdicts
from dlp_core.errors import InvalidRequest, NotFound
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import PLACES, open_store
from dlp_core.store.protocol import AdapterStore

if TYPE_CHECKING:
    from dlp_core.bank.difference import BankDiff

app = typer.Typer(help="Publish and maintain banks.", no_args_is_help=True)

_NAMED = 8
"""Adapters that a question names."""

Version = Annotated[str | None, typer.Argument(help="A bank version; default: the current one.")]


@app.command("init")
def init_bank(
    folder: Annotated[Path, typer.Argument(help="The bank folder to make.")],
    *,
    base_model: SomeBaseModel = None,
    base_model_name: Annotated[
        str | None, typer.Option(help="The id of the base model, if its folder does not say it.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a bank folder: adapters of one base model, which `dlp bank import` brings."""
    from dlp_core.adapter.base_names import folder_name, names_a_model
    from dlp_core.bank.importing import start_bank

    if base_model is None and base_model_name is None:
        raise InvalidRequest("a bank is for one base model: --base-model MODEL or --base-model-name NAME")
    name, digest = base_model_name or "", None
    if base_model is not None:
        model = fetched(base_model, weights=False)
        name = name or folder_name(model)
        if base_model_name is None and not names_a_model(name):
            raise InvalidRequest(f"{base_model} does not say which model it is; --base-model-name gives its id")
        with served(model) as base:
            digest = base.digest()
    start_bank(folder, name, weights=digest)
    if json:
        terminal.print_json({"folder": str(folder), "base_model": name, "weights": digest})
        return
    terminal.say(
        f"{escape(str(folder))} is a bank for {escape(name)}. Next: dlp bank import SOURCE --into {escape(str(folder))}"
    )


@app.command("import")
def import_into(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of adapters, however deep; a store's prefix; a .csv or .yaml of name, uri and description; "
            "hf://org/name.",
            metavar="SOURCE",
        ),
    ],
    *,
    into: Annotated[Path, typer.Option(help="Bank folder, as dlp bank init makes it.")],
    base_model: CheckedBaseModel = None,
    replace: Annotated[bool, typer.Option(help="Take an adapter in place of another one of its name.")] = False,
    json: Json = False,
) -> None:
    """Bring adapters from where they are kept into a bank folder, and say of each what became of it. Exit 1 if any was
    refused."""
    from dlp_core.bank.discovery import discover
    from dlp_core.bank.folder import read_base
    from dlp_core.bank.importing import import_adapters

    base = read_base(into)
    check = None
    if base_model is not None:
        from dlp_core.bank.served_base import check_served
        from dlp_core.fusion.layers import fits_model

        model = fetched(base_model, weights=False)
        with served(model) as compared:
            remark = check_served(base, compared, strict=False)
        if remark:
            terminal.warn(remark)
        check = fits_model(model)
    with terminal.progress(f"import {source}") as bar:
        found = discover(source)
        outcomes = list(
            import_adapters(found, into, base=base.names, check=check, replace=replace, progress=bar.report)
        )
    counts = Counter(outcome.result for outcome in outcomes)
    if json:
        terminal.print_json({"into": str(into), "counts": counts, "adapters": [one._asdict() for one in outcomes]})
    else:
        colours = {"taken": "green", "changed": "yellow", "present": "dim", "refused": "red"}
        for one in outcomes:
            terminal.say(
                f"[{colours[one.result]}]{one.result:8}[/] [bold]{escape(one.name)}[/]  {escape(one.location)}"
            )
            for line in one.said:
                terminal.say(f"         {escape(line)}")
        summary = ", ".join(f"{count} {result}" for result, count in counts.items())
        terminal.say(f"{summary}; {escape(str(into))} has them. Next: dlp bank publish {escape(str(into))} --bank URI")
    if counts["refused"]:
        raise typer.Exit(1)


@app.command()
def publish(
    folder: Annotated[
        str,
        typer.Argument(
            help=f"Bank folder: bank.json, adapters/<name>/, router/. {PLACES}.",
            metavar="FOLDER|URI",
        ),
    ],
    *,
    bank: Bank,
    version: Annotated[
        str | None, typer.Option(help="Name of this bank version; default: derived from its content.")
    ] = None,
    base_model: CheckedBaseModel = None,
    strict_names: StrictNames = False,
    stage: Annotated[
        bool, typer.Option("--stage", help="Only check and upload it, for `dlp bank canary` or `dlp bank shadow`.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Validate a bank folder, upload what is new, and make it the current bank. Asks before adapters are removed."""
    from dlp_core.adapter.examination import Rules, Verdict
    from dlp_core.bank.folder import read_base
    from dlp_core.bank.publish import publish as publish_bank
    from dlp_core.bank.served_base import ServedBase, check_served

    store = open_store(bank)
    check = model = None
    if base_model is not None:
        from dlp_core.fusion.layers import fits_model

        model = fetched(base_model, weights=False)
        check = fits_model(model)
    changes: list[BankDiff] = []

    def confirm(change: BankDiff) -> None:
        if change not in changes:  # once: after a conflict the folder is read again
            bar.pause()
            ask_before_removal(change, store, verb="publish", yes=yes, json=json)
            changes.append(change)

    verdicts: dict[str, Verdict] = {}  # by name: after a conflict, the folder is read again
    with terminal.progress(f"publish {folder}") as bar, local_copy(folder) as source:
        base = None
        if model is not None:
            base = ServedBase.at(model, progress=partial(bar.report, title=f"read the weights in {model}"))
            if remark := check_served(read_base(source), base, strict=strict_names):
                terminal.warn(remark)
        manifest = publish_bank(
            store,
            source,
            version=version,
            served=base,
            check=check,
            rules=Rules(strict_names=strict_names, hub_links=True),
            stage=stage,
            report=lambda verdict: verdicts.update({verdict.name: verdict}),
            read=partial(bar.report, title="read adapters"),
            confirm=confirm,
            progress=partial(bar.report, title=f"publish {folder}"),
        )
    said = list(verdicts.values())
    if json:
        counts = {"bank": store.uri, "version": manifest.version, "adapters": len(manifest.adapters)}
        changed = asdict(changes[-1]) if changes and changes[-1] else None
        terminal.print_json({**counts, "changes": changed, **as_lines(said)})
    else:
        if changes:
            terminal.say(_changes(changes[-1]))
        terminal.say(
            f"[bold]{manifest.version}[/] {'is' if stage else 'serves'} in {escape(store.uri)}: "
            f"{len(manifest.adapters):,} adapters, "
            f"{size_text(manifest.size)}"
            + ("" if check else "; --base-model MODEL would also check that they fit its layers")
        )
    print_verdicts(said, json=json)


@app.command()
def show(bank: Bank, version: Version = None, json: Json = False) -> None:
    """Show one bank: its base model, router, adapters and recipes."""
    from dlp_core.bank.reading import load_manifest

    manifest = load_manifest(open_store(bank), version)
    if json:
        terminal.print_json(manifest.model_dump(mode="json"))
        return
    router = manifest.router.version if manifest.router else "none"
    terminal.say(
        f"[bold]{manifest.version}[/] of {manifest.created:%Y-%m-%d %H:%M} UTC, base model "
        f"{escape(manifest.base_model.id)}, router {router}"
    )
    table = Table("adapter", "version", "rank", "modules", "size", "")
    for adapter in manifest.adapters:
        table.add_row(
            adapter.name,
            adapter.version,
            str(adapter.rank),
            ", ".join(adapter.modules),
            size_text(adapter.size),
            "" if adapter.invocation is None else "activated",
        )
    terminal.out.print(table)
    if manifest.recipes:
        recipes = Table("recipe", "mix", "called", "for")
        for recipe in manifest.recipes:
            called = "by name or by the router" if recipe.routed and manifest.router else "by name"
            recipes.add_row(recipe.name, str(recipe.mix), called, escape(recipe.description or ""))
        terminal.out.print(recipes)
    if manifest.allowed_together is not None:
        pairs = ", ".join(" with ".join(pair) for pair in manifest.allowed_together)
        terminal.say(f"allowed together: {pairs or 'no adapters'}")


@app.command("list")
def list_banks(bank: Bank, json: Json = False) -> None:
    """List every published version, newest first."""
    from dlp_core.bank.reading import list_versions

    store = open_store(bank)
    versions = list_versions(store)
    if not versions:
        raise NotFound(f"no bank is published in {store.uri}; run: dlp bank publish FOLDER --bank URI")
    if json:
        terminal.print_json(
            [
                {
                    "version": bank_version.version,
                    "created": bank_version.created.isoformat(),
                    "adapters": bank_version.adapters,
                    "recipes": bank_version.recipes,
                    "size": bank_version.size,
                    "current": bank_version.current,
                    "pinned": bank_version.pinned,
                    "canary": bank_version.canary,
                    "shadow": bank_version.shadow,
                }
                for bank_version in versions
            ]
        )
        return
    table = Table("", "version", "created (UTC)", "adapters", "recipes", "size")
    for bank_version in versions:
        table.add_row(
            ", ".join(
                word
                for word, holds in (
                    ("serves", bank_version.current),
                    ("canary", bank_version.canary),
                    ("shadow", bank_version.shadow),
                    ("pinned", bank_version.pinned),
                )
                if holds
            ),
            bank_version.version,
            f"{bank_version.created:%Y-%m-%d %H:%M:%S}",
            str(bank_version.adapters),
            str(bank_version.recipes),
            size_text(bank_version.size),
        )
    terminal.out.print(table)


@app.command("diff")
def diff_banks(
    a: Annotated[str, typer.Argument(help="A bank version.")],
    b: Annotated[str, typer.Argument(help="The version to compare it with.")],
    bank: Bank,
    json: Json = False,
) -> None:
    """Show what changes from version A to version B."""
    from dlp_core.bank.difference import diff
    from dlp_core.bank.reading import load_manifest

    store = open_store(bank)
    difference = diff(load_manifest(store, a), load_manifest(store, b))
    if json:
        terminal.print_json(asdict(difference))
        return
    terminal.say(_changes(difference))


@app.command("pull")
def pull_bank(
    folder: Annotated[Path, typer.Argument(help="Where it goes; empty, or not there yet.")],
    *,
    bank: Bank,
    version: Annotated[str | None, typer.Option(help="A bank version; default: the current one.")] = None,
    json: Json = False,
) -> None:
    """Bring a published bank back to a folder, with what the admin route has changed. To publish the folder gives the
    same bank."""
    from dlp_core.bank.pull import pull

    with terminal.progress(f"pull {bank}") as bar:
        manifest = pull(open_store(bank), folder, version=version, progress=bar.report)
    if json:
        terminal.print_json({"folder": str(folder), "version": manifest.version, "adapters": len(manifest.adapters)})
        return
    terminal.say(f"{escape(str(folder))} has bank [bold]{manifest.version}[/]: {len(manifest.adapters)} adapters")


@app.command("rollback")
def rollback_bank(
    bank: Bank,
    version: Annotated[
        str | None, typer.Argument(help="Target version; default: the previous bank, or while a canary runs, its end.")
    ] = None,
    json: Json = False,
) -> None:
    """Undo the latest change: end the canary if one runs, else make an earlier version the current bank again. Nothing
    is uploaded or deleted."""
    from dlp_core.bank.publish import rollback

    store = open_store(bank)
    with terminal.progress("look up files") as bar:
        manifest = rollback(store, version, progress=bar.report)
    if json:
        terminal.print_json({"bank": store.uri, "version": manifest.version, "adapters": len(manifest.adapters)})
        return
    terminal.say(f"[bold]{manifest.version}[/] serves in {escape(store.uri)}: {len(manifest.adapters)} adapters")


def ask_before_removal(change: BankDiff, store: AdapterStore, *, verb: str, yes: bool, json: bool) -> None:
    """Ask before a publish, or another `verb`, removes adapters or recipes. Raises InvalidRequest without an answer,
    and where nobody can be asked."""
    removed = (*change.removed, *(f"the recipe {name}" for name in change.recipes_removed))
    if not removed or yes:
        return
    more = len(removed) - _NAMED
    shown = ", ".join(removed[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
    what = f"this removes {shown}, which {store.uri} serves now"
    if json or not sys.stdin.isatty():
        raise InvalidRequest(f"{what}; --yes does it all the same, `dlp bank pull` brings what serves to a folder")
    if not typer.confirm(f"{what[0].upper()}{what[1:]}. {verb.capitalize()}?", err=True):
        raise InvalidRequest("nothing was changed")


def _changes(change: BankDiff) -> str:
    lines = [
        *(f"[green]+ {name}[/]" for name in change.added),
        *(f"[red]- {name}[/]" for name in change.removed),
        *(f"[yellow]~ {name}[/]" for name in change.changed),
        *(f"[green]+ recipe {name}[/]" for name in change.recipes_added),
        *(f"[red]- recipe {name}[/]" for name in change.recipes_removed),
        *(f"[yellow]~ recipe {name}[/]" for name in change.recipes_changed),
        *(["[yellow]~ only the pairs of allowed_together are mixed[/]"] if change.mixes == "listed" else []),
        *(["[yellow]~ any adapters are mixed[/]"] if change.mixes == "any" else []),
        *(f"[green]+ {' with '.join(pair)}[/]" for pair in change.pairs_added),
        *(f"[red]- {' with '.join(pair)}[/]" for pair in change.pairs_removed),
        *(["[yellow]~ the router[/]"] if change.router_changed else []),
        *(["[yellow]~ the base model[/]"] if change.base_changed else []),
    ]
    return "\n".join(lines) or "no difference"


def size_text(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
