"""`dlp eval pairs`: which adapters of a bank spoil each other's answers, and so which may run together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from deployments import terminal
from deployments.cli.eval import (
    FINDINGS,
    AtOnce,
    Bank,
    Data,
    Dtype,
    History,
    Out,
    Rows,
    SuiteFile,
    Threads,
    phases,
    read_setup,
    read_suite,
    require_option,
)
from deployments.cli.options import Device, Json, SomeBaseModel
from deployments.extras import require
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.eval.pairing import Plan
    from dlp_core.eval.pairs import Drop, PairFindings, PairFound
    from dlp_core.together import Pair


def pairs(
    *,
    suite: SuiteFile = None,
    bank: Bank = None,
    base_model: SomeBaseModel = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every pair of the bank, not only those that the router joins on the suite.")
    ] = False,
    max_drop: Annotated[float, typer.Option(min=0, help="Points that a pair may lose.")] = 1.0,
    write: Annotated[
        bool, typer.Option("--write", help="List the pairs that are not spoiled in the bank folder's bank.json.")
    ] = False,
    data: Data = None,
    rows: Rows = None,
    out: Out = Path("eval"),
    dtype: Dtype = "bfloat16",
    device: Device = None,
    threads: Threads = None,
    at_once: AtOnce = 16,
    history: History = None,
    json: Json = False,
) -> None:
    """Judge pairs of adapters: the same prompts with both and without one. Names those that spoil each other. An
    interrupted run resumes where it stopped."""
    require("rouge_score", "sacrebleu")
    from deployments.args import CacheArgs
    from dlp_core.bank.folder import is_folder, write_pairs
    from dlp_core.eval.pairing import run_pairs
    from dlp_core.store.opening import open_store

    judged = read_suite(suite, data, rows)
    location = require_option(bank, "--bank", "DLP_BANK")
    if write and not is_folder(location):
        raise InvalidRequest(
            f"--write changes a bank folder, and {location} is none; `dlp bank pull` brings a published bank to one"
        )
    setup = read_setup(base_model, dtype, device, threads, at_once)
    with phases() as phase:
        findings, manifest = run_pairs(
            judged,
            location,
            setup,
            every=every,
            max_drop=max_drop,
            cache=CacheArgs().open(),
            journal=out / "answers.jsonl",
            phase=phase,
            announce=_announce,
            history=open_store(history) if history else None,
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / FINDINGS).write_text(findings.model_dump_json(indent=1) + "\n", encoding="utf-8")
    allowed = findings.allowed(manifest.allowed_together)
    if json:
        terminal.print_json(findings.model_dump(mode="json") | {"allowed_together": allowed})
    else:
        _show(findings)
        terminal.say(f"Judged: {escape(str(findings.bank))}. {escape(str(out / FINDINGS))}")
    if write:
        _check_recipes(manifest, allowed)
        path = write_pairs(Path(location), allowed)
        if not json:
            terminal.say(f"{escape(str(path))} allows {len(allowed)} {_noun(len(allowed))} together")


def add_to(app: typer.Typer) -> None:
    app.command()(pairs)


def _announce(plan: Plan) -> None:
    count = len(plan.pairs)
    line = f"{count} {_noun(count)} of {plan.adapters} adapters, {plan.answers} answers"
    terminal.err.print(line, highlight=False, soft_wrap=True)


def _noun(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _check_recipes(manifest: BankManifest, allowed: list[Pair]) -> None:
    """Whether the bank's recipes mix only pairs that are to be allowed."""
    from dlp_core.together import Together

    together = Together(allowed)
    for recipe in manifest.recipes:
        if (pair := together.conflict(recipe.mix.names)) is not None:
            raise InvalidRequest(
                f"recipe {recipe.name!r} mixes {pair[0]!r} and {pair[1]!r}, which are not found good together, so "
                "nothing was written; remove it with `dlp mix remove`, or fit it without one of them"
            )


def _show(findings: PairFindings) -> None:
    from dlp_core.eval.pairs import MIN_ROWS

    table = Table(Column("pair", no_wrap=True), title="points with both minus points without one, of so many prompts")
    for column in ("joined", "own rows", "one out"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for pair in findings.pairs:
        worst = min(pair.own.values(), key=lambda own: own.least.difference.mean, default=None)
        table.add_row(
            " with ".join(pair.adapters),
            _cell(pair.joined),
            _cell(None if worst is None else worst.alone),
            "" if worst is None else f"{worst.least.difference.mean:+.1f}",
            "[red]spoiled[/]" if pair.spoiled else "" if pair.judged else "unjudged",
        )
    terminal.out.print(table)
    for pair in findings.pairs:
        if pair.spoiled:
            terminal.say(_spoiled(pair, findings.max_drop))
    if not findings.spoiled:
        judged = sum(pair.judged for pair in findings.pairs)
        lost = f"lost more than {findings.max_drop:g} points and more than its noise"
        terminal.say(f"[green]none of {judged} {_noun(judged)} {lost}[/]" if judged else "no pair could be judged")
    if rest := sum(not pair.judged for pair in findings.pairs):
        least = f"fewer than {MIN_ROWS} prompts that they answer apart"
        terminal.say(f"{rest} {_noun(rest)} not judged: {least}; a suite with more composite prompts tells more")


def _cell(drop: Drop | None) -> str:
    return "" if drop is None else f"{drop.difference.mean:+.1f} of {drop.rows}"


def _spoiled(pair: PairFound, max_drop: float) -> str:
    losses = [
        f"{where} {drop.apart:.1f} -> {drop.together:.1f} ({drop.difference.low:+.1f} to {drop.difference.high:+.1f})"
        for where, drop in pair.losses(max_drop).items()
    ]
    return f"[red]spoiled: {' with '.join(pair.adapters)}[/]: {'; '.join(losses)}"
