"""What starts imports no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
