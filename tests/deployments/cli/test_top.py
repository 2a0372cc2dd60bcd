"""`dlp top` in front of a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments import terminal
from deployments.cli import main, top
from deployments.client.server import Server
from deployments.http.access import Access
from dlp_core.ports import free_port
from tests.deployments.client.test_activity import FIRST
from tests.support.echo import EchoService
from tests.support.echo_server import echo_server
from tests.support.paths import ROOT

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service() -> EchoService:
    return EchoService(metrics_text=FIRST.encode())


@pytest.fixture
def url(service: EchoService) -> Iterator[str]:
    with echo_server(service) as found:
        yield found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "top", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_once_prints_one_table_in_eighty_columns(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    code, out, err = run("--url", url, "--once")
    assert (code, err, max(map(len, out.splitlines())) <= 80) == (0, "", True)
    shown = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        f"{url} bank b1",
        "replicas 2 FusedBackbone, 2 Ingress",
        "adapters 3 device, 8 disk, 0 host",
        "requests 3 running, 4 waiting for adapters cache 50%",
        "errors 2 queue_full",
        "requests 23",
        "tokens written 100",
        "cron 1 15 2",
        "sql - 3 0",
    ):
        assert any(found.startswith(line) for found in shown), (line, shown)


def test_json_has_all_of_it(run: Run, url: str) -> None:
    code, out, _ = run("--url", url, "--once", "--json")
    found = json.loads(out)
    assert (code, found["url"], found["bank"]["version"]) == (0, url, "b1")
    assert (found["running"], found["waiting"], found["recent"]) == (3, 4, None)
    assert found["adapters"][0] == {
        "name": "cron", "in_slots": 1, "hits": 15, "loads": 2, "hits_per_second": None
    }  # fmt: skip


def test_many_adapters_are_cut_to_the_screen(url: str, service: EchoService) -> None:
    service.metrics_text = "".join(f'dlp_adapter_hits_total{{adapter="a{n}"}} {n}\n' for n in range(1, 31)).encode()
    with Server(url) as server:
        watch = top.Watch(server)
        watch.read()
        with terminal.out.capture() as screen:
            terminal.out.print(top.view(watch, rows=5))
    assert "a30" in screen.get()
    assert "a25" not in screen.get()
    assert "and 25 more" in screen.get()


def test_a_window_is_what_happened_in_it(url: str, service: EchoService, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("deployments.cli.top.time.monotonic", lambda: now)
    with Server(url) as server:
        watch = top.Watch(server)
        for hits in (0, 0, 0, 30):
            service.metrics_text = f'dlp_adapter_hits_total{{adapter="a"}} {hits}\n'.encode()
            watch.read()
            now += 10
        activity = watch.activity()
    assert (activity.seconds, activity.adapters[0].hits_per_second) == (20, 1.5)


def test_no_server_is_one_line(run: Run) -> None:
    code, out, err = run("--url", f"127.0.0.1:{free_port()}", "--once")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "start one with `dlp demo` or `dlp serve`" in err


def test_a_server_with_keys_wants_an_operators(run: Run, tmp_path: Path, service: EchoService) -> None:
    keys, token = tmp_path / "keys.json", tmp_path / "token"
    keys.write_text(json.dumps({"keys": [{"name": "a", "key": "key-of-a-tenant-01234"}]}))
    token.write_text("metrics-token-0123456789")
    with echo_server(service, access=Access(keys_file=keys, metrics_token_file=token)) as url:
        code, _, err = run("--url", url, "--once", "--key", "key-of-a-tenant-01234")
        assert (code, err.count("\n")) == (2, 1)
        assert "metrics are for the operator" in err
        code, out, _ = run("--url", url, "--once", "--key", "metrics-token-0123456789")
        assert (code, "bank unknown" in out) == (0, True)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_it_goes_on_until_it_is_interrupted(url: str) -> None:
    command = [sys.executable, "-m", "deployments.cli.main", "top", "--url", url, "--interval", "0.5", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
    assert (first["recent"], second["recent"]["requests"], process.returncode) == (None, 0, 0)
