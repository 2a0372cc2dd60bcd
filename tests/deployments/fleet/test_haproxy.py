"""`dlp-haproxy` tells the server that a client has left, under the options that Ray configures."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from deployments.fleet.haproxy import COMMAND
from dlp_core.ports import free_port
from tests.support.waiting import HANG_S, wait_for

CONFIG = """
defaults
    mode http
    option abortonclose
    option splice-request
    option splice-response
    timeout connect 120s
    timeout client 120s
    timeout server 120s
    http-reuse always
frontend front
    bind 127.0.0.1:{front}
    default_backend back
backend back
    server one 127.0.0.1:{back}
"""


def connected(port: int) -> socket.socket | None:
    with suppress(OSError):
        return socket.create_connection(("127.0.0.1", port), timeout=HANG_S)
    return None


def test_a_client_that_leaves_before_its_answer_is_noticed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        front = free_port()
        (tmp_path / "haproxy.cfg").write_text(CONFIG.format(front=front, back=server.getsockname()[1]))
        proxy = subprocess.Popen([COMMAND, "-f", tmp_path / "haproxy.cfg", "-db"], stderr=subprocess.DEVNULL)
        try:
            client = wait_for(lambda: connected(front), "HAProxy")
            client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n")
            behind, _ = server.accept()
            behind.settimeout(HANG_S)
            while not behind.recv(4096).endswith(b"\r\n\r\n"):
                pass
            client.sendall(b"{}")
            assert behind.recv(4096) == b"{}"
            client.close()
            with suppress(ConnectionResetError):
                assert behind.recv(4096) == b""  # and not a TimeoutError
            behind.close()
        finally:
            proxy.kill()
            proxy.wait()
