"""Options of the same name mean the same in every `dlp` command that shares them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from deployments.cli.main import app


def commands(command: Any, path: str = "dlp") -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not below or command.invoke_without_command:
        yield path, command
    for name, one in below.items():
        yield from commands(one, f"{path} {name}")


@pytest.mark.parametrize(
    ("option", "shared_by"),
    [
        ("--json", {"dlp route", "dlp eval", "dlp eval gate", "dlp model push", "dlp adapter check", "dlp bank gc"}),
        ("--device", {"dlp adapter train", "dlp eval", "dlp eval gate"}),
        ("--seed", {"dlp adapter train", "dlp router train"}),
    ],
)
def test_a_shared_option_is_described_alike(option: str, shared_by: set[str]) -> None:
    found = {
        path: (parameter.help, parameter.envvar, parameter.default)
        for path, command in commands(typer.main.get_command(app))
        for parameter in command.params
        if option in parameter.opts
    }
    assert shared_by <= set(found)
    assert len(set(found.values())) == 1, found
