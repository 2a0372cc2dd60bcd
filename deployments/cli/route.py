"""`dlp route`: how a router routes a text and why, or a file of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.bar import Bar
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.options import ROWS, Json
from dlp_core.errors import InvalidRequest
from dlp_core.mix import Granularity, Mix, WeightRule, resolve
from dlp_core.store.opening import PLACES
from dlp_core.together import ANY, Together

if TYPE_CHECKING:
    from dlp_core.router import Router, Routing
    from dlp_core.router.explanation import Explanation

SHOWN = 8
"""Adapters shown with a bar, and words listed."""

_BAR = 40  # characters
_PASSAGE = 48  # characters

Divided = tuple[int, int, Mix]
"""Start and end of a passage, and its mix."""


def route(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="The text to route.", show_default=False)] = None,
    *,
    router: Annotated[Path | None, typer.Option(help="Folder of a trained router.")] = None,
    bank: Annotated[
        str | None, typer.Option(envvar="DLP_BANK", help=f"A bank instead, or a bank folder: {PLACES}.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help=f"{ROWS}, not TEXT.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Keep the fewest adapters with this share of the probability.", show_default="the router's, mostly 0.9"
        ),
    ] = None,
    max_adapters: Annotated[int, typer.Option(help="Keep at most this many adapters.")] = 3,
    weights: Annotated[
        WeightRule, typer.Option(help="Probabilities divided by their sum, or a second softmax over them.")
    ] = "renormalise",
    granularity: Annotated[
        Granularity, typer.Option(help="One mix, or one for each passage that is about a task.")
    ] = "request",
    json: Json = False,
) -> None:
    """Show which adapters would serve a text, with which weights, and which words decide. Generates nothing."""
    from deployments.http.replies import explanation_json
    from dlp_core.router.explanation import explain_first
    from dlp_core.router.passages import passages_first
    from dlp_core.router.rows import read_routing_texts

    if (text is None) == (file is None):
        raise InvalidRequest("give either a TEXT or --file")
    source = context.get_parameter_source("bank")
    if router is not None and source is not None and source.name == "ENVIRONMENT":
        bank = None
    if (router is None) == (bank is None):
        raise InvalidRequest("give either --router DIR or --bank URI")
    opened, recipes, together = _open(router, bank)
    opened = _without_wide(opened, recipes, max_adapters)
    texts = [(text,)] if text is not None else read_routing_texts(file or Path())

    def chosen(routing: Routing) -> Mix:
        names = routing.mix(top_p=top_p, max_adapters=max_adapters, weights=weights, together=together)
        return resolve(names, recipes, max_adapters=max_adapters)

    for read, routing in zip(texts, opened.route_first(texts), strict=True):
        mix = chosen(routing)
        passages = None
        if granularity != "request":
            passages = [
                (passage.start, passage.end, chosen(passage.routing)) for passage in passages_first(opened, read)
            ]
        if text is None:
            if json:
                terminal.print_json(_as_dict(routing, mix, passages))
            else:
                mixes = [mix] if passages is None else [mix for *_, mix in passages]
                terminal.say(f"{' | '.join(map(str, mixes))}  confidence {routing.confidence:.2f}")
            continue
        explanation = explain_first(opened, [text])
        if json:
            terminal.print_json(_as_dict(routing, mix, passages) | explanation_json(explanation))
        else:
            terminal.out.print(_table(routing, mix))
            terminal.say(
                _kept(routing, mix, top_p=routing.top_p if top_p is None else top_p, max_adapters=max_adapters)
            )
            terminal.say(_words(explanation))
            if passages is not None:
                terminal.out.print(_passages(text, passages))


def _open(router: Path | None, bank: str | None) -> tuple[Router, dict[str, Mix], Together]:
    """The router, the mixes of the bank's recipes, and what it allows to be mixed."""
    from dlp_core.router import Router

    if router is not None:
        return Router.load(router), {}, ANY
    from deployments.args import CacheArgs
    from dlp_core.bank.folder import is_folder, read_together
    from dlp_core.bank.reading import load_manifest
    from dlp_core.bank.recipes import read_recipes
    from dlp_core.bank.source import read_router
    from dlp_core.store.opening import open_store

    if is_folder(str(bank)):
        recipes = {recipe.name: recipe.mix for recipe in read_recipes(Path(str(bank)))}
        return Router.load(Path(str(bank), "router")), recipes, read_together(Path(str(bank)))
    store = open_store(str(bank))
    manifest = load_manifest(store)
    return read_router(store, CacheArgs().open(), manifest), manifest.recipe_mixes, manifest.together


def _without_wide(router: Router, recipes: dict[str, Mix], max_adapters: int) -> Router:
    """The router without the recipes of more than `max_adapters` adapters, as a server routes such a request."""
    from dlp_core.router import restricted

    wide = {name for name, mix in recipes.items() if len(mix.names) > max_adapters}
    allowed = frozenset(router.labels) - wide
    if not allowed:
        raise InvalidRequest(f"--max-adapters is {max_adapters}, and the router knows only recipes of more adapters")
    return restricted(router, allowed)


def _as_dict(routing: Routing, mix: Mix, passages: Sequence[Divided] | None) -> dict[str, Any]:
    from deployments.http.replies import remarks_json, weights_json
    from dlp_core.router.routing import NONE_THRESHOLD

    found = {
        "confidence": routing.confidence,
        "none": routing.none,
        "margin": round(routing.margin, 2),
        "none_threshold": NONE_THRESHOLD,
        "mix": weights_json(mix),
        **remarks_json(mix),
        "probabilities": routing.probabilities,
    }
    if passages is not None:
        found["passages"] = [
            {"start": start, "end": end, "mix": weights_json(mix), **remarks_json(mix)} for start, end, mix in passages
        ]
    return found


def _table(routing: Routing, mix: Mix) -> Table:
    """A bar per adapter, the likeliest ones first, and one for "none of these" with its threshold."""
    from dlp_core.router.routing import NONE_THRESHOLD

    weights = {part.name: f"{part.weight:.2f}" for part in mix.adapters}
    weights |= dict.fromkeys(mix.recipes, "its adapters")
    table = Table("adapter", "probability", "", "weight in the mix", box=None)

    def row(name: str, mass: float, *, chosen: bool, note: str) -> None:
        bar = Bar(1.0, 0, mass, width=_BAR, color="green" if chosen else "bright_black")
        table.add_row(name, f"{mass:.3f}", bar, note)

    likely = sorted(routing.probabilities.items(), key=lambda item: -item[1])
    for name, mass in likely[:SHOWN]:
        row(name, mass, chosen=name in weights, note=weights.get(name, ""))
    if len(likely) > SHOWN:
        row(f"the other {len(likely) - SHOWN}", sum(mass for _, mass in likely[SHOWN:]), chosen=False, note="")
    threshold = f"threshold {NONE_THRESHOLD:.2f}"
    row("none of these", routing.none, chosen=not routing.fits, note=threshold)
    return table


def _passages(text: str, passages: Sequence[Divided]) -> Table:
    """Each passage, on one line, and its mix."""
    table = Table("passage", "its mix", box=None)
    for start, end, mix in passages:
        shown = f"{mix}; {_left_out(mix)}" if mix.left_out else str(mix)
        table.add_row(escape(shorten(text[start:end], _PASSAGE, placeholder=" ...")), shown)
    return table


def _kept(routing: Routing, mix: Mix, *, top_p: float, max_adapters: int) -> str:
    if not mix:
        return f"kept: none, {-routing.margin:.1f} below the threshold; the plain backbone serves this"
    kept = (
        f"kept: {mix}, {routing.margin:.1f} above the threshold "
        f"(the fewest with {top_p:g} of the adapters' probability, at most {max_adapters})"
    )
    return f"{kept}\n{_left_out(mix)}" if mix.left_out else kept


def _left_out(mix: Mix) -> str:
    """What the bank does not allow in this mix."""
    return "; ".join(
        f"left out: {one.name}, as the bank does not allow {one.pair[0]} and {one.pair[1]} together"
        for one in mix.left_out
    )


def _words(explanation: Explanation) -> str:
    """The most influential words, in text order."""
    strongest = sorted(explanation.words, key=lambda word: -abs(word.effect))[:SHOWN]
    if not strongest:
        return "one word, or none: there is nothing to compare it with"
    shown = [
        f"[{'green' if word.effect > 0 else 'red'}]{escape(word.text)} {word.effect:+.1f}[/]"
        for word in explanation.words
        if word in strongest
    ]
    what = "any adapter" if explanation.adapter is None else explanation.adapter
    return f"words for (+) and against (-) {what}, in log-odds: {'  '.join(shown)}"
