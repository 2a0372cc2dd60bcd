"""The demo's S3 server: it keeps what it was told, and it never outlives the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dlp_core.errors import StoreUnavailable
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

PARENT = """
import os, sys, time
from pathlib import Path
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store
server = LocalS3(Path(sys.argv[1]))
os.environ.update(server.start())
server.create_bucket("kept")
open_store("s3://kept/").put("a/b", b"still here")
print(os.environ["AWS_ENDPOINT_URL_S3"], flush=True)
time.sleep(600)
"""


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.s3
def test_the_server_dies_with_its_parent_and_its_data_does_not(
    tmp_path: Path, aws_free: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        port = urlsplit(parent.stdout.readline().strip()).port
        assert port is not None
        assert is_open(port)
        os.kill(parent.pid, signal.SIGKILL)
    wait_for(lambda: not is_open(port), "end of the server, which outlived its parent")

    with LocalS3(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert open_store("s3://kept/").get("a/b").data == b"still here"


@pytest.mark.s3
def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=str(port)):
            LocalS3(tmp_path, port).start()


def test_without_seaweedfs_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreUnavailable, match="dlp-serve\\[demo\\]"):
        LocalS3(tmp_path).start()
