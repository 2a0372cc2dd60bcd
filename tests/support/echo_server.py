"""The HTTP API in front of an echo, on a port of this machine, for clients that want a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from tests.support.echo import LIMITS, EchoService
from tests.support.waiting import wait_for


@contextmanager
def echo_server(service: EchoService, *, access: Access | None = None) -> Iterator[str]:
    """Its URL."""
    app = create_app(service, routing=RoutingArgs(max_adapters=3), limits=LIMITS, access=access or Access())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started, "server")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
