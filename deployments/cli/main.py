"""`dlp`: one command, a sub-command per noun. Exit 0 done, 1 failed, 2 bad usage or bad input."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from deployments import terminal
from deployments.cli import (
    adapter,
    bank,
    chat,
    config,
    console,
    eval,
    feedback,
    improve,
    k8s,
    mix,
    model,
    pairs,
    rollout,
    route,
    router,
    serve,
    top,
    upkeep,
)
from deployments.extras import MODULES, not_installed
from dlp_core.errors import DLPError
from dlp_core.quiet import quiet_imports
from dlp_core.store.disk import disk_error, is_full

Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)]

app = typer.Typer(
    name="dlp",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def dlp(*, version: Version = False) -> None:
    """Serve a bank of LoRA adapters behind one endpoint."""
    if version:
        typer.echo(f"dlp-serve {metadata.version('dlp-serve')}")
        raise typer.Exit


app.command()(serve.demo)
app.command()(serve.serve)
app.command()(console.console)
app.add_typer(adapter.app, name="adapter")
rollout.add_to(bank.app)
upkeep.add_to(bank.app)
app.add_typer(bank.app, name="bank")
app.add_typer(config.app, name="config")
pairs.add_to(eval.app)
app.add_typer(eval.app, name="eval")
app.add_typer(feedback.app, name="feedback")
app.add_typer(improve.app, name="improve")
app.add_typer(k8s.app, name="k8s")
app.add_typer(mix.app, name="mix")
app.add_typer(model.app, name="model")
app.add_typer(router.app, name="router")
app.command("route")(route.route)
app.command("chat")(chat.chat)
app.command("top")(top.top)


def main() -> None:
    """Run the command line. User errors, a missing extra and a full disk end in one line on stderr, never in a
    traceback."""
    quiet_imports()
    try:
        app()
    except DLPError as error:
        _exit_with(error)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in MODULES:
            raise
        _exit_with(not_installed(name))
    except OSError as error:
        if error.filename is None and not is_full(error):  # not about a file: a bug
            raise
        _exit_with(disk_error(error, f"{error.filename or 'a file'}: cannot be used"))


def _exit_with(error: DLPError) -> NoReturn:
    terminal.mistake(error.message)
    sys.exit(2 if error.status < 500 else 1)


if __name__ == "__main__":
    main()
