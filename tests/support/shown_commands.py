"""`dlp` command lines as pages, manifests and workflows show them, held against the command line there is."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import typer

from deployments.cli.main import app


def check(line: str, where: str, *, environment: Collection[str] = ()) -> str:
    """Fails unless the line names commands and options there are, and no required option is missing that the
    environment does not give. Returns the commands, such as "bank publish"."""
    program, *words = shlex.split(line)
    assert program == "dlp", f"{where} shows `{line}`"
    command: Any = typer.main.get_command(app)
    path = []
    while getattr(command, "commands", None) and not (command.invoke_without_command and words[0].startswith("-")):
        assert words, f"{where} shows `{line}`, which is not a whole command"
        assert words[0] in command.commands, f"{where} shows `{line}`: no {words[0]!r} in {command.name}"
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in known, f"{where} shows `{line}`: {word} is not an option"
    for parameter in command.params:
        if parameter.required and parameter.param_type_name == "option" and parameter.envvar not in environment:
            assert set(parameter.opts) & set(words), f"{where} shows `{line}` without {parameter.opts}"
    return " ".join(path)
