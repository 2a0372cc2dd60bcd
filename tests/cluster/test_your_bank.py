"""docs/your-bank.md, command for command, as a shell would run it: from a tree of adapters to a bank that is served and
evaluated. The model and its adapters are tiny; the store is a real S3 server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dlp_core.ports import free_port
from dlp_core.store.local_s3 import LocalS3
from examples.tiny.build import BASE, OPENINGS, TASKS
from tests.cluster.test_command import is_healthy
from tests.docs.test_readme import PAGES, README, commands
from tests.support.application import PATIENCE, ROOT, START_S
from tests.support.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PAGE = ROOT / "docs/your-bank.md"
TRAINED = "sql"
"""The adapter that the page trains; the others are imported."""
STOPPED = ("dlp serve",)
"""Commands that run until Ctrl-C."""


@pytest.fixture
def desk(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the page starts from: adapters as training runs leave them, rows, and somebody's store."""
    for name in set(TASKS) - {TRAINED}:
        shutil.copytree(parts / "bank/adapters" / name, tmp_path / "runs" / name / "lora" / "checkpoint-900")
    shutil.copytree(parts / BASE, tmp_path / BASE)
    rows = [
        {"task": task, "input": f"{opening}{text.format(number)}", "output": f"{task} {number}"}
        for task, text in TASKS.items()
        for opening in OPENINGS
        for number in range(12)
    ]
    for name, part in (("rows.jsonl", rows[::2]), ("held_back.jsonl", rows[1::30])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    server = LocalS3(tmp_path / "s3", port=free_port())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in server.start().items():
        monkeypatch.setenv(name, value)
    server.create_bucket("my-bucket")
    yield tmp_path
    server.stop()


def test_every_command_of_the_page_works(desk: Path) -> None:
    shown = commands(PAGE, "dlp")
    assert len(shown) > 10
    for line in shown:
        words = shlex.split(line.replace("MODEL", BASE))
        if line.startswith(STOPPED):
            serves(words)
        else:
            done = dlp(words)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (desk / "report/report.html").is_file()


def test_the_readme_shows_no_other_commands() -> None:
    elsewhere = {line for page in PAGES if page.name == "your-bank.md" for line in commands(page, "dlp")}
    own = README[README.index("## Your own bank") : README.index("## Measured")]
    for line in commands(ROOT / "README.md", "dlp"):
        assert line not in own or line in elsewhere, f"the README shows `{line}`, which {PAGE.name} does not"


def dlp(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(run_by(words), capture_output=True, text=True, check=False, timeout=START_S)


def run_by(words: list[str]) -> list[str]:
    assert words[0] == "dlp"
    return [sys.executable, "-c", "from deployments.cli.main import main; main()", *words[1:]]


def serves(words: list[str]) -> None:
    """Starts the server, sends it a request and stops it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = Path("serve.log")
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*run_by(words), "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, env=os.environ | PATIENCE
        ) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or is_healthy(f"{url}/health"), "health", START_S)
            assert process.poll() is None, log.read_text()
            body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG_S)
            assert answer.status_code == 200, answer.text
        finally:
            process.terminate()
            process.wait(HANG_S)
