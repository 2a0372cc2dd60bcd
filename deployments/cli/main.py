"""`dlp`: one command, a sub-command per noun. Exit 0 done, 1 failed, 2 bad usage or bad input."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.markup import escape

from deployments import terminal
from deployments.cli import adapter, bank, eval, model, route, router, serve
from dlp_core.errors import DLPError
from dlp_core.store.disk import disk_error, is_full

app = typer.Typer(
    name="dlp",
    help="Serve a bank of LoRA adapters behind one endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(serve.demo)
app.command()(serve.serve)
app.add_typer(adapter.app, name="adapter")
app.add_typer(bank.app, name="bank")
app.add_typer(eval.app, name="eval")
app.add_typer(model.app, name="model")
app.add_typer(router.app, name="router")
app.command("route")(route.route)


def main() -> None:
    """Run the command line. User errors and a full disk end in one line on stderr, never in a traceback."""
    try:
        app()
    except DLPError as error:
        _exit_with(error)
    except OSError as error:
        if error.filename is None and not is_full(error):  # not about a file: a bug
            raise
        _exit_with(disk_error(error, f"{error.filename or 'a file'}: cannot be used"))


def _exit_with(error: DLPError) -> NoReturn:
    terminal.err.print(f"[bold red]dlp:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    sys.exit(2 if error.status < 500 else 1)


if __name__ == "__main__":
    main()
