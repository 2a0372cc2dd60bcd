"""`dlp serve` as a command: where it listens, and how it ends, with nothing lost of what it was told."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dlp_core.bank.feedback import Feedback, KeptRequest
from dlp_core.bank.kept import FEEDBACK, REQUESTS, read
from dlp_core.bank.publish import publish
from dlp_core.ports import free_port
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE
from tests.support.application import PATIENCE, ROOT, START_S, answer_of
from tests.support.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and its address, once it serves. It keeps requests and feedback, and writes them at its end only."""
    publish(open_store(str(folder / "store")), folder / "bank")
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application = config["applications"][0]
    application["args"] |= {"dtype": "float32", "threads": 1, "cache": {"path": str(folder / "cache")}}
    application["args"] |= {"log": {"prompts": True}, "feedback": {"delay_s": 3600.0}}
    application["args"]["routing"]["timeout_s"] = HANG_S
    for deployment in application["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [sys.executable, "-c", "from deployments.cli.main import main; main()", "serve", "--port", str(port)]
    options = ["--bank", str(folder / "store"), "--base-model", str(folder / BASE), "--config", "serve.yaml"]
    environment = os.environ | PATIENCE
    with subprocess.Popen(
        [*command, *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: process.poll() is not None or is_healthy(f"{url}/health"), "health", START_S)
            assert process.poll() is None, process.communicate()[0]
            yield process, url
        finally:
            process.terminate()
            process.wait(HANG_S)


def is_healthy(url: str) -> bool:
    answer = answer_of(url)
    return answer is not None and answer.is_success


def reachable() -> set[str]:
    """Listening addresses of this machine that another one could reach, as the kernel lists them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            words = bytes.fromhex(local.split(":")[0])
            packed = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
            address = ipaddress.ip_address(packed)
            address = getattr(address, "ipv4_mapped", None) or address
            if state == "0A" and not address.is_loopback:
                found.add(local)
    return found


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(url, json=body, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_only_its_replicas_listen_for_others_and_it_ends_on_sigterm(folder: Path) -> None:
    """Serve's replicas listen for each other on every address, which no setting changes: ingress, router, backbone."""
    before = reachable()
    store = open_store(str(folder / "store"))
    with serve(folder) as (process, url):
        assert len(reachable() - before) <= 3
        turns = [{"role": "user", "content": "say something"}]
        asked = post(f"{url}/v1/chat/completions", {"model": "auto", "messages": turns, "max_tokens": 2})["id"]
        given = [post(f"{url}/v1/feedback", {"request_id": asked, "adapter": None})["id"] for _ in range(2)]
        assert [entry.id for entry in read(store, FEEDBACK, Feedback)] == given[:1]
        assert read(store, REQUESTS, KeptRequest) == []
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=HANG_S)
        assert "Everything has stopped." in output
        assert "Traceback" not in output
        assert process.returncode == 0
    assert [entry.id for entry in read(store, FEEDBACK, Feedback)] == given
    [kept] = read(store, REQUESTS, KeptRequest)
    assert (kept.id, kept.text, kept.status) == (asked, "say something", 200)
