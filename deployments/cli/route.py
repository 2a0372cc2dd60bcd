"""`dlp route`: what a router makes of a text and why, or of a file of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.bar import Bar
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.mix import Mix
    from dlp_core.router import Router, Routing
    from dlp_core.router.explanation import Explanation

SHOWN = 8
"""Adapters that get a bar, and words that are named."""

_BAR = 40  # characters


def route(
    text: Annotated[str | None, typer.Argument(help="The text to route.", show_default=False)] = None,
    *,
    router: Annotated[Path | None, typer.Option(help="Folder of a trained router.")] = None,
    bank: Annotated[str | None, typer.Option(help="A published bank instead: s3://bucket/prefix/ or a folder.")] = None,
    file: Annotated[Path | None, typer.Option(help='JSON lines {"input": text}, plain or .gz, not TEXT.')] = None,
    top_p: Annotated[float, typer.Option(help="Keep the fewest adapters that have this share.")] = 0.9,
    max_adapters: Annotated[int, typer.Option(help="Keep at most this many adapters.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each text.")] = False,
) -> None:
    """Show which adapters would serve a text, how much of each, and which words decide it. Generates nothing."""
    from dlp_core.router.explanation import explain_first
    from dlp_core.router.rows import read_texts

    if (text is None) == (file is None):
        raise InvalidRequest("give a TEXT or --file, one of the two")
    if (router is None) == (bank is None):
        raise InvalidRequest("give --router DIR or --bank URI, one of the two")
    found = _open(router, bank)
    texts = [text] if text is not None else read_texts(file or Path())
    for routing in found.route(texts):
        mix = routing.mix(top_p=top_p, max_adapters=max_adapters)
        if text is None:
            if json:
                terminal.print_json(_as_dict(routing, mix))
            else:
                terminal.out.print(f"{mix}  confidence {routing.confidence:.2f}", highlight=False, soft_wrap=True)
            continue
        explanation = explain_first(found, [text])
        if json:
            words = [{"text": word.text, "effect": word.effect} for word in explanation.words]
            terminal.print_json(_as_dict(routing, mix) | {"explains": explanation.adapter, "words": words})
        else:
            terminal.out.print(_table(routing, mix))
            terminal.out.print(_kept(mix, top_p=top_p, max_adapters=max_adapters), highlight=False, soft_wrap=True)
            terminal.out.print(_words(explanation), highlight=False, soft_wrap=True)


def _open(router: Path | None, bank: str | None) -> Router:
    from dlp_core.router import Router

    if router is not None:
        return Router.load(router)
    from deployments.args import CacheArgs
    from dlp_core.bank.disk_cache import DiskCache
    from dlp_core.bank.reading import load_manifest
    from dlp_core.bank.source import read_router
    from dlp_core.store.opening import open_store

    store, cache = open_store(str(bank)), CacheArgs()
    return read_router(store, DiskCache(cache.path, cache.max_bytes), load_manifest(store))


def _as_dict(routing: Routing, mix: Mix) -> dict[str, Any]:
    from dlp_core.router.routing import NONE_THRESHOLD

    return {
        "confidence": routing.confidence,
        "none": routing.none,
        "none_threshold": NONE_THRESHOLD,
        "mix": [{"adapter": part.name, "weight": part.weight} for part in mix.adapters],
        "probabilities": routing.probabilities,
    }


def _table(routing: Routing, mix: Mix) -> Table:
    """A bar per adapter, the likeliest ones first, and one for "none of these" with its threshold."""
    from dlp_core.router.routing import NONE_THRESHOLD

    weights = {part.name: f"{part.weight:.2f}" for part in mix.adapters}
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


def _kept(mix: Mix, *, top_p: float, max_adapters: int) -> str:
    if not mix:
        return 'kept: none, since "none of these" is above its threshold; the plain backbone serves this'
    return f"kept: {mix} (the fewest that have {top_p:g} of what the adapters have, at most {max_adapters})"


def _words(explanation: Explanation) -> str:
    """The words that moved it most, in their order."""
    strongest = sorted(explanation.words, key=lambda word: -abs(word.effect))[:SHOWN]
    if not strongest:
        return "there are no words to explain it by"
    shown = [
        f"[{'green' if word.effect > 0 else 'red'}]{escape(word.text)} {word.effect:+.1f}[/]"
        for word in explanation.words
        if word in strongest
    ]
    return f"words for (+) and against (-) {explanation.adapter}, in log-odds: {'  '.join(shown)}"
