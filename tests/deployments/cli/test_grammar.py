"""One grammar: an option has the same name, variable and meaning in every command, and what reports does so in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from deployments.cli.main import app

RUNS = {"console", "demo", "serve"}
"""Commands that report nothing: they run until Ctrl-C."""
ELSEWHERE = {"--base": "--base-model", "--model-dir": "--base-model", "--force": "--yes", "--output": "--out"}
"""Names that an option must not have, and what it is called."""
VARIABLES = {
    "--bank": "DLP_BANK",
    "--base-model": "DLP_BASE_MODEL",
    "--key": "DLP_API_KEY",
    "--admin-token": "DLP_ADMIN_TOKEN",
    "--password": "DLP_CONSOLE_PASSWORD",
}
OTHER_THINGS = {("demo", "--bank"), ("feedback purge", "--key")}
"""A folder that is published, and the name of a key."""


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    command = typer.main.get_command(app) if command is None else command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))
    if path and (not hasattr(command, "commands") or len(command.params) > 1):
        yield " ".join(path), command


def options(command: Any) -> dict[str, Any]:
    return {name: parameter for parameter in command.params for name in parameter.opts if name.startswith("--")}


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_what_reports_does_so_in_json(name: str) -> None:
    assert ("--json" in options(COMMANDS[name])) == (name not in RUNS)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_has_another_name_for_what_others_call_something(name: str) -> None:
    assert options(COMMANDS[name]).keys().isdisjoint(ELSEWHERE)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_variable_gives_an_option_everywhere(name: str) -> None:
    for option, parameter in options(COMMANDS[name]).items():
        if (name, option) not in OTHER_THINGS:
            assert parameter.envvar == VARIABLES.get(option), f"dlp {name} {option}"


@pytest.mark.parametrize("option", ["--json", "--seed", "--url", "--key", "--resume", "--strict-names", "--engine"])
def test_an_option_has_one_help(option: str) -> None:
    found = {name: options(command).get(option) for name, command in COMMANDS.items()}
    helps = {parameter.help for name, parameter in found.items() if parameter and (name, option) not in OTHER_THINGS}
    assert len(helps) == 1
