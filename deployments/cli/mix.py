"""`dlp mix`: fit a recipe, a mix of a bank's adapters under a name of its own, to a few rows; remove one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.base_model import fetched, served
from deployments.cli.options import ROWS, Bank, BaseModel, Device, Json, Seed
from dlp_core.errors import InvalidRequest, UnknownModel
from dlp_core.store.opening import open_store

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.eval.judged_bank import JudgedBank
    from dlp_core.train.mixes import Fit, FitProgress, FitSettings, Gain
    from dlp_core.train.rows import Row

app = typer.Typer(help="Fit mixes of a bank's adapters: recipes.", no_args_is_help=True)

LIKELY = 8
"""Adapters that the router thinks possible."""
_LEAST = 0.01
"""The mean probability from which on it does."""
_DECIMALS = 5


@app.command()
def fit(
    *,
    bank: Bank,
    base_model: BaseModel,
    data: Annotated[Path, typer.Option(help=f"{ROWS}; 16 to 64 are enough.")],
    name: Annotated[str, typer.Option(help="Name of the recipe, which requests give as their model.")],
    adapters: Annotated[
        str | None,
        typer.Option(help="Adapters to mix, comma separated; default: all of the bank are looked through."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only the rows of this task.")] = None,
    max_adapters: Annotated[int, typer.Option(min=1, help="Most adapters in the recipe.")] = 3,
    description: Annotated[str | None, typer.Option(help="What it is for, in a sentence.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Keep it even if it beats neither the best adapter nor the backbone.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of a recipe of that name.")] = False,
    stage: Annotated[
        bool, typer.Option("--stage", help="Of a published bank: only store the new version, do not serve it.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Learn the weights of a mix from a few rows, judge it by rows held back, and keep it if it beats the best single
    adapter and the plain backbone. Exit 1 if it does not. Takes minutes; Ctrl-C leaves nothing behind."""
    with _nothing_left_behind():
        from dlp_core.bank.folder import checked_description, is_folder
        from dlp_core.bank.recipes import entry_of, write_recipe
        from dlp_core.bank.revision import with_recipe
        from dlp_core.train.mixes import FitSettings
        from dlp_core.train.rows import read_rows

        if "#" in bank:
            raise InvalidRequest(f"--bank is {bank}: a recipe is added to the current bank; leave the version out")
        about = None if description is None else checked_description(description)
        rows = read_rows(data, task=task, joint=True)
        with _opened(bank) as opened:
            manifest = opened.manifest
            if opened.store is None and not is_folder(bank):
                raise InvalidRequest(f"{bank} is a bank folder in a store; publish it, or fit on a copy of it here")
            _check_name(manifest, name, replace=replace)
            found = _fit(
                opened,
                rows,
                base_model=base_model,
                adapters=adapters,
                settings=FitSettings(max_adapters=max_adapters, seed=seed),
                device=terminal.device(device),
            )
        written: str | None = None
        if found.mix and (found.beats or yes):
            digests = {adapter.name: adapter.digest for adapter in manifest.adapters}
            weights = {part.name: part.weight for part in found.mix.adapters}
            recipe = entry_of(name, weights, digests, description=about, fitted=_evidence(found))
            if is_folder(bank):
                written = str(write_recipe(Path(bank), recipe, replace=replace))
            else:
                written = with_recipe(open_store(bank), recipe, replace=replace, stage=stage).version
    if json:
        terminal.print_json({"recipe": name, "written": written, **_as_dict(found)})
    else:
        terminal.out.print(_table(name, found))
        terminal.say(_verdict(name, found))
        if written is not None:
            terminal.say(_next(name, written, bank, folder=is_folder(bank), stage=stage))
    if written is None:
        if not json:
            terminal.say("nothing was written" + ("; --yes keeps it all the same" if found.mix else ""))
        raise typer.Exit(1)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A recipe of the bank.")],
    *,
    bank: Bank,
    json: Json = False,
) -> None:
    """Remove a recipe from a bank folder, or from a published bank as a new version. Its adapters stay."""
    from dlp_core.bank.folder import is_folder
    from dlp_core.bank.recipes import remove_recipe
    from dlp_core.bank.revision import without_recipe

    version = None
    if is_folder(bank):
        remove_recipe(Path(bank), name)
    else:
        version = without_recipe(open_store(bank), name).version
    if json:
        terminal.print_json({"removed": name, "version": version})
        return
    if version is not None:
        terminal.say(f"[bold]{version}[/] serves without {escape(name)}")
        return
    terminal.say(
        f"{escape(bank)} is without {escape(name)}; a router that knows it forgets it with "
        f"dlp router remove --router {escape(bank)}/router --adapter {escape(name)}"
    )


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        terminal.err.print("[bold]dlp:[/] stopped; nothing was written", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def _opened(bank: str) -> Iterator[JudgedBank]:
    from deployments.args import CacheArgs
    from dlp_core.eval.judged_bank import open_bank

    with open_bank(bank, CacheArgs().open()) as opened:
        yield opened


def _check_name(manifest: BankManifest, name: str, *, replace: bool) -> None:
    """Whether a recipe may have this name: told before the fit, which takes minutes."""
    from dlp_core.adapter.names import AUTO, validate_name

    validate_name(name)
    if name in (AUTO, manifest.base_model.id) or any(adapter.name == name for adapter in manifest.adapters):
        raise InvalidRequest(f"--name is {name!r}, which is a model of this bank already; give the recipe another name")
    if name in manifest.recipe_mixes and not replace:
        raise InvalidRequest(f"--name is {name!r}, which is a recipe of this bank already; --replace fits it again")


def _fit(
    opened: JudgedBank,
    rows: list[Row],
    *,
    base_model: str,
    adapters: str | None,
    settings: FitSettings,
    device: str,
) -> Fit:
    from deployments.args import RoutingArgs
    from dlp_core.bank.served_base import check_served
    from dlp_core.train.mixes import fit_mix

    if settings.max_adapters > (most := RoutingArgs().max_adapters):
        raise InvalidRequest(f"--max-adapters is {settings.max_adapters}; servers mix at most {most}")
    entries = {adapter.name: adapter for adapter in opened.manifest.adapters}
    names = list(entries) if adapters is None else [each.strip() for each in adapters.split(",") if each.strip()]
    if unknown := [each for each in names if each not in entries]:
        raise UnknownModel(f"--adapters: there is no adapter {unknown[0]!r} in this bank; see `dlp bank show`")
    together = opened.manifest.together
    if adapters is not None and (pair := together.conflict(names)) is not None:
        raise InvalidRequest(
            f"--adapters: {pair[0]!r} and {pair[1]!r} may not run together in this bank; leave one out, or add the "
            "pair to allowed_together"
        )
    model = fetched(base_model)
    with served(model) as base:
        if remark := check_served(opened.manifest.base_model, base, strict=False):
            terminal.warn(remark)
    with terminal.progress(f"fit {len(rows)} rows") as bar:
        return fit_mix(
            model,
            rows,
            list(dict.fromkeys(names)),
            lambda each: opened.source.load(entries[each].qualified_name),
            settings,
            likely=_likely(opened, rows),
            together=together,
            device=device,
            report=_reporting(bar.report),
        )


def _likely(opened: JudgedBank, rows: list[Row]) -> list[str]:
    """The adapters that the bank's router thinks possible for the rows, the likeliest first."""
    from dlp_core.text.chat import routing_texts

    if opened.router is None:
        return []
    sums: dict[str, float] = {}
    for routing in opened.router.route_first([routing_texts(row.turns) for row in rows]):
        for label, probability in routing.probabilities.items():
            sums[label] = sums.get(label, 0.0) + probability
    ranked = sorted(sums, key=lambda label: -sums[label])
    return [label for label in ranked if sums[label] >= _LEAST * len(rows)][:LIKELY]


def _reporting(report: Callable[..., None]) -> Callable[[FitProgress], None]:
    def show(state: FitProgress) -> None:
        title = state.phase
        if state.loss is not None and state.seconds_left is not None:
            title += f": loss {state.loss:.3f}, {terminal.duration(state.seconds_left)} left"
        report(state.done, state.total, title=title)

    return show


def _evidence(found: Fit) -> Any:
    from dlp_core.bank.manifest import RecipeFit

    return RecipeFit(
        rows=found.rows,
        held_back=found.held_back,
        loss=round(found.loss, _DECIMALS),
        plain_loss=round(found.plain_loss, _DECIMALS),
        best_adapter=found.best,
        best_adapter_loss=round(found.best_loss, _DECIMALS),
    )


def _as_dict(found: Fit) -> dict[str, Any]:
    def gain(each: Gain) -> dict[str, float]:
        return {"mean": each.mean, "error": each.error}

    return {
        "beats": found.beats,
        "mix": [{"adapter": part.name, "weight": part.weight} for part in found.mix.adapters],
        "rows": found.rows,
        "held_back": found.held_back,
        "loss": found.loss,
        "plain_loss": found.plain_loss,
        "best_adapter": found.best,
        "best_adapter_loss": found.best_loss,
        "over_plain": gain(found.over_plain),
        "over_best": gain(found.over_best),
        "looked_through": dict(found.looked_through),
        "seconds": round(found.seconds, 1),
    }


def _table(name: str, found: Fit) -> Table:
    table = Table("", "loss, nats a token", "above the recipe", title=f"{found.held_back} rows held back")
    table.add_row(f"{escape(name)}: {found.mix}", f"{found.loss:.4f}", "")
    for label, loss, gain in (
        (f"{escape(found.best)} alone, the best adapter", found.best_loss, found.over_best),
        ("the plain backbone", found.plain_loss, found.over_plain),
    ):
        table.add_row(label, f"{loss:.4f}", f"{gain.mean:+.4f} ± {gain.error:.4f}")
    return table


def _verdict(name: str, found: Fit) -> str:
    if not found.mix:
        return f"[red]{escape(name)} is no recipe[/]: none of the adapters helps steadily on these rows"
    if found.beats:
        return (
            f"[green]{escape(name)} beats {escape(found.best)} alone and the plain backbone[/] on the rows held back, "
            "by more than the standard error"
        )
    others = (found.over_best, f"{escape(found.best)} alone"), (found.over_plain, "the plain backbone")
    unbeaten = " nor ".join(other for gain, other in others if not gain.counts)
    return f"[red]{escape(name)} does not beat {unbeaten}[/] on the rows held back, by more than the standard error"


def _next(name: str, written: str, bank: str, *, folder: bool, stage: bool) -> str:
    if folder:
        return f"{escape(written)}. Next: dlp bank publish {escape(bank)} --bank URI"
    done = f'[bold]{written}[/] {"is stored" if stage else "serves"}: "model": "{escape(name)}" answers with it'
    return f"{done} once it serves" if stage else done
