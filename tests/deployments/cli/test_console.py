"""`dlp console` as a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from deployments.cli.main import app
from dlp_core.errors import InvalidRequest
from dlp_core.ports import free_port
from tests.support.paths import ROOT
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def started(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, which listens; no server is where it looks for one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DLP_ADMIN_TOKEN": "token-that-nobody-sees"}
    command = [
        sys.executable,
        "-m",
        "deployments.cli.main",
        "console",
        "--port",
        str(port),
        "--url",
        "http://127.0.0.1:9",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            wait_for(lambda: process.poll() is not None or _listens(port), "console")
            yield process
        finally:
            process.kill()


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/console/state", timeout=HANG_S).is_success
    except httpx.ConnectError:
        return False


def test_it_serves_says_where_and_what_it_may_and_ends_on_sigterm(started: subprocess.Popen[str], port: int) -> None:
    assert "dlp console" in httpx.get(f"http://127.0.0.1:{port}/", timeout=HANG_S).text
    started.send_signal(signal.SIGTERM)
    output, _ = started.communicate(timeout=HANG_S)
    assert f"http://127.0.0.1:{port}" in output
    assert "may change the bank" in output
    assert "token-that-nobody-sees" not in output
    assert "Traceback" not in output
    assert started.returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--url", "nowhere"], "--url"),
        (["--host", "0.0.0.0"], "DLP_CONSOLE_PASSWORD"),
        (["--reports", "none"], "--reports"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["console", *options], env={"DLP_CONSOLE_PASSWORD": None})
    assert isinstance(result.exception, InvalidRequest)
    assert said in result.exception.message


def test_a_port_in_use_is_one_line(started: subprocess.Popen[str], port: int) -> None:
    result = CliRunner().invoke(app, ["console", "--port", str(port)])
    assert isinstance(result.exception, InvalidRequest)
    assert f"port {port} is in use" in result.exception.message
