"""The settings that come with the package, and `dlp config init`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli.main import app
from deployments.local.app import PACKAGED_CONFIG, find_config, load_config
from dlp_core.errors import InvalidRequest
from tests.support.paths import ROOT


def test_the_package_has_the_top_level_file() -> None:
    assert PACKAGED_CONFIG.read_bytes() == (ROOT / "serve_config.yaml").read_bytes(), "run: python -m k8s.embed"


def test_a_file_of_this_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(None) == PACKAGED_CONFIG
    result = CliRunner().invoke(app, ["config", "init"])
    assert result.exit_code == 0
    assert find_config(None) == Path("serve_config.yaml")
    assert find_config(Path("other.yaml")) == Path("other.yaml")
    assert load_config(find_config(None)) == load_config(PACKAGED_CONFIG)


def test_a_file_that_was_edited_is_replaced_only_with_yes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("edited")
    refused = CliRunner().invoke(app, ["config", "init", str(path)])
    assert isinstance(refused.exception, InvalidRequest)
    assert "--yes" in str(refused.exception)
    assert path.read_text() == "edited"
    assert CliRunner().invoke(app, ["config", "init", str(path), "--yes"]).exit_code == 0
    assert path.read_bytes() == PACKAGED_CONFIG.read_bytes()


def test_a_file_that_is_not_there_is_said_with_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="dlp config init"):
        load_config(tmp_path / "serve.yaml")
