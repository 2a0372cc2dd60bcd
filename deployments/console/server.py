"""Serves an ASGI application, such as the console, on a thread of this process."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn
from starlette.types import ASGIApp

from dlp_core.errors import InvalidRequest

PORT = 8001


@contextmanager
def serving(app: ASGIApp, *, host: str = "127.0.0.1", port: int = PORT) -> Iterator[str]:
    """The address of the application, which ends with the block. Raises InvalidRequest if `port` cannot be had."""
    with closing(_listener(host, port)) as listener:
        # without a log_config, which would close the handlers that others have set up in this process
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="console", daemon=True)
        thread.start()
        try:
            yield f"http://{_shown(host)}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _listener(host: str, port: int) -> socket.socket:
    """Listening before the server runs: a browser that comes early waits instead of being refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(f"port {port} is in use; choose another for it") from None
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
