"""Which Pythons the project says it takes, and which of them `make` chooses."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKE = shutil.which("make")


def test_the_range_the_classifiers_and_the_makefile_agree() -> None:
    minors = [int(line.rpartition(".")[2]) for line in PROJECT["classifiers"] if " :: Python :: 3." in line]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PROJECT["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    assert f"(3, {minors[0]}) <= sys.version_info < (3, {minors[-1] + 1})" in MAKEFILE
    *first, last = [f"3.{minor}" for minor in minors]
    assert f"Python {', '.join(first)} or {last} is needed" in MAKEFILE
    assert re.findall(r"^PYTHONS := (.*)$", MAKEFILE, flags=re.MULTILINE) == [
        " ".join([*(f"python3.{minor}" for minor in minors), "python3"])
    ]


@pytest.mark.skipif(MAKE is None, reason="there is no make")
@pytest.mark.parametrize(
    ("works", "broken", "chosen"),
    [
        (["python3.11", "python3.12", "python3"], [], "python3.11"),
        (["python3.13", "python3.12"], [], "python3.12"),
        (["python3"], [], "python3"),
        (["python3.13", "python3"], ["python3.11", "python3.12"], "python3.13"),
        ([], ["python3"], "python3.11"),
    ],
    ids=["3.11 first", "the next", "python3", "others are not of a supported version", "none, for the message"],
)
def test_make_takes_the_first_python_that_is_supported(
    works: list[str], broken: list[str], chosen: str, tmp_path: Path
) -> None:
    for name in (*works, *broken):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(name in broken)}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(MAKE), "--no-print-directory", "--eval", "which: ; @echo $(PYTHON);", "which"]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [chosen]
