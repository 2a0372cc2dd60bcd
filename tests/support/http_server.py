"""An HTTP server of this process for the length of a block."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs nothing, keeps connections open, and has one method for all requests: by default, 404."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def answer(self, body: bytes) -> None:
        """Answer the request `self.command` `self.path`, whose body was read."""
        self.reply(404)

    def do_GET(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A complete response. A header `x_y` is sent as `x-y`; HEAD gets the length and no body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], *, certificate: Path | None = None) -> Iterator[str]:
    """The address of a server, `127.0.0.1:port`; with a `certificate` (PEM, key included) it speaks TLS."""
    with _Server(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
