"""`dlp console`: a web page for a running server, until Ctrl-C."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from deployments import terminal
from deployments.cli.serve import until_interrupted
from deployments.extras import require


def console(
    *,
    url: Annotated[str, typer.Option(metavar="URL", help="A running server.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None,
        typer.Option(envvar="DLP_API_KEY", help="API key, where the server wants one.", show_default=False),
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar="DLP_ADMIN_TOKEN",
            help="The server's admin token: whoever opens the page may then change the bank.",
            show_default=False,
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="DLP_CONSOLE_PASSWORD",
            help="What the browser asks for. Needed on a --host that others reach.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the console.")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    reports: Annotated[
        Path | None, typer.Option(help="Folder with what `dlp eval --out` wrote, for the page Evaluate.")
    ] = None,
) -> None:
    """Open a web page for a running server: try it, see the bank and its traffic, review routings, compare evaluations.

    Secrets given as options show in the list of processes; the environment's do not."""
    require("starlette", "uvicorn")
    from deployments.console.app import create_console
    from deployments.console.server import serving
    from deployments.console.settings import ConsoleSettings

    settings = ConsoleSettings(url, key or None, admin_token or None, password or None, host, reports)
    with until_interrupted(), serving(create_console(settings), host=host, port=port) as address:
        terminal.say(f"Console of {settings.url} on {address} until Ctrl-C.")
        if settings.admin_token and not settings.password:
            terminal.warn(
                "the console has the admin token: everybody with an account on this machine may change the bank with "
                "it; DLP_CONSOLE_PASSWORD makes it ask"
            )
        signal.pause()
