"""What starts imports no more than it needs, and what stays is kept out of the garbage collector's way."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from deployments.replicas.imports import lasting_imports
from tests.support.paths import ROOT

HEAVY = ("torch", "transformers", "peft", "accelerate", "ray", "fastapi", "boto3", "pydantic", "numpy")
COMMAND = "import sys; from deployments.cli.main import app; app(sys.argv[1:], standalone_mode=False)"


def imported(code: str, *arguments: str) -> set[str]:
    """What of HEAVY a process that ran `code` has imported."""
    code += f"; import sys; sys.stderr.write(' '.join({{*{HEAVY}}} & sys.modules.keys()))"
    command = [sys.executable, "-c", code, *arguments]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stderr.split())


@pytest.mark.parametrize("module", ["dlp_core", "dlp_core.mix", "deployments.cli.main"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert imported(f"import {module}") == set()


def test_help_imports_nothing_heavy() -> None:
    assert imported(COMMAND, "--help") == set()


def test_a_text_is_routed_with_numpy_alone() -> None:
    found = imported(COMMAND, "route", "tomorrow as a cron line", "--router", "examples/bank/router")
    assert found - {"pydantic"} == {"numpy"}  # typer itself takes pydantic along


def test_the_front_imports_no_torch() -> None:
    """Ingress and Router replicas stay small and start fast; only a backbone replica imports torch."""
    assert not imported("import deployments.app") & {"torch", "transformers", "peft", "accelerate"}


@pytest.fixture
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_the_collector_leaves_lasting_imports_alone() -> None:
    before = gc.get_freeze_count()
    with lasting_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


@pytest.mark.usefixtures("unfrozen")
def test_the_collector_runs_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), lasting_imports():
        raise ImportError
    assert gc.isenabled()
