"""`dlp config`: the settings of the application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments import terminal
from deployments.cli.options import Json, Yes
from dlp_core.errors import InvalidRequest

app = typer.Typer(help="The settings of the application.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """So that `init` stays a sub-command while it is the only one."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where it goes.")] = Path("serve_config.yaml"),
    *,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Write the default settings to a file to edit. `dlp serve` reads serve_config.yaml in its folder by itself."""
    from deployments.local.app import PACKAGED_CONFIG

    if path.exists() and not yes:
        raise InvalidRequest(f"{path} exists; --yes replaces it")
    path.write_text(PACKAGED_CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    if json:
        terminal.print_json({"file": str(path)})
        return
    terminal.out.print(f"Wrote {path}. Its comments say what each setting does.", highlight=False)
