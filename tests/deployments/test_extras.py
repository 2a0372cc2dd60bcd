"""What is not installed is one line with the command that installs it, before any work."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions

import pytest
from typer.testing import CliRunner

from deployments import extras
from deployments.cli import main
from deployments.extras import MODULES
from dlp_core.errors import InvalidRequest
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("module", MODULES)
def test_the_extra_that_is_named_installs_the_module(module: str) -> None:
    declared = {
        requirement.partition("[")[0].partition(">")[0].partition(";")[0].strip().lower().replace("_", "-")
        for requirement in PROJECT["optional-dependencies"][MODULES[module]]
    }
    if module in ("starlette", "opentelemetry"):  # of fastapi; of the exporter
        declared |= {"starlette"} if "fastapi" in declared else set()
        declared |= {"opentelemetry-api"} if any(name.startswith("opentelemetry") for name in declared) else set()
    found = {name.lower().replace("_", "-") for name in packages_distributions().get(module, ())}
    if not found:
        pytest.skip(f"{module} is not installed here")
    assert found & declared, (found, declared)


COMMANDS = {
    "ray": ["serve", "--bank", "none", "--base-model", "none"],
    "peft": ["adapter", "train", "--data", "rows.jsonl", "--base-model", "none", "--out", "none"],
    "matplotlib": ["eval", "--suite", "none.yaml", "--bank", "none", "--base-model", "none", "--out", "none"],
    "openai": ["demo"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_says_it_before_its_work(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == module else found(name))
    result = CliRunner().invoke(main.app, COMMANDS[module])
    assert isinstance(result.exception, InvalidRequest), result.output
    assert f"pip install 'dlp-serve[{MODULES[module]}]'" in str(result.exception)


def test_a_module_that_is_missing_anywhere_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'obstore'", name="obstore.store")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "dlp-serve[clouds]" in capsys.readouterr().err


def test_a_module_of_nobody_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'dlp_core.gone'", name="dlp_core.gone")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(ModuleNotFoundError):
        main.main()
