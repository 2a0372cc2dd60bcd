"""benchmarks/README.md is a whole index: every command and every instrument is listed, and nothing else is."""

from __future__ import annotations

import re

import pytest

from benchmarks.suite import PARTS
from tests.support.paths import ROOT

FOLDER = ROOT / "benchmarks"
INDEX = (FOLDER / "README.md").read_text()
COMMANDS = {path.stem: path for path in FOLDER.glob("*.py") if path.stem != "__init__"}
COMMANDS |= {path.parent.name: path for path in FOLDER.glob("*/__main__.py")}


def listed(heading: str) -> set[str]:
    """The names in the first column of the section's table."""
    section = INDEX.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_command_is_listed() -> None:
    assert listed("Commands of `make bench`") | listed("Other commands") == set(COMMANDS)


def test_make_bench_runs_what_is_listed_for_it() -> None:
    assert listed("Commands of `make bench`") == {part.name for part in PARTS} | {"suite", "plot"}


def test_every_instrument_is_listed() -> None:
    assert listed("Instruments") == {path.stem for path in (FOLDER / "measure").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_can_be_run_and_says_how(name: str) -> None:
    source = COMMANDS[name].read_text()
    assert 'if __name__ == "__main__":' in source
    assert f"python -m benchmarks.{name}" in source.split('"""')[1]
