"""`dlp route`: what a router makes of a text, or of a file of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deployments import console
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.mix import Mix
    from dlp_core.router import Routing


def route(
    text: Annotated[str | None, typer.Argument(help="The text to route.", show_default=False)] = None,
    *,
    router: Annotated[Path, typer.Option(help="Folder of a trained router.")],
    file: Annotated[Path | None, typer.Option(help='JSON lines {"input": text}, plain or .gz, not TEXT.')] = None,
    top_p: Annotated[float, typer.Option(help="Keep the fewest adapters that have this share.")] = 0.9,
    max_adapters: Annotated[int, typer.Option(help="Keep at most this many adapters.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each text.")] = False,
) -> None:
    """Show which adapters would serve a text, and how much of each. Generates nothing."""
    from dlp_core.router import Router
    from dlp_core.router.rows import read_task_rows

    if text is not None and file is None:
        texts = [text]
    elif file is not None and text is None:
        texts = [row.input for row in read_task_rows([file], labelled=False)]
    else:
        raise InvalidRequest("give a TEXT or --file, one of the two")
    for routing in Router.load(router).route(texts):
        mix = routing.mix(top_p=top_p, max_adapters=max_adapters)
        if json:
            console.print_json(_as_dict(routing, mix))
        elif text is None:
            console.out.print(f"{mix}  confidence {routing.confidence:.2f}", highlight=False, soft_wrap=True)
        else:
            console.out.print(_table(routing, mix))


def _as_dict(routing: Routing, mix: Mix) -> dict[str, Any]:
    return {
        "confidence": routing.confidence,
        "none": routing.none,
        "mix": [{"adapter": part.name, "weight": part.weight} for part in mix.adapters],
        "probabilities": routing.probabilities,
    }


def _table(routing: Routing, mix: Mix, *, shown: int = 5) -> Table:
    """The likeliest adapters, and "none of these" where it belongs among them."""
    weights = {part.name: f"{part.weight:.2f}" for part in mix.adapters}
    masses = {**routing.probabilities, "none of these": routing.none}
    table = Table("adapter", "probability", "weight in the mix")
    for name in sorted(masses, key=masses.__getitem__, reverse=True)[:shown]:
        table.add_row(name, f"{masses[name]:.3f}", weights.get(name, ""))
    return table
