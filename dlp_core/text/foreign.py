"""Chat templates that come with adapters: rendered in another process (rendering.py), within a time and a memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from threading import Lock

from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.text.rendering import CPU_SECONDS

_HANG_SECONDS = 60.0
"""After which the process is lost: a template that takes a second of the processor ends it before."""
_ANSWER_BYTES = 16 * 2**20

_FIRST: Mapping[str, object] = {
    "template": "",
    "turns": [{"role": "user", "content": ""}],
    "tools": None,
    "answer": True,
    "special": {},
}

Turn = Mapping[str, object]
"""A message as templates see it: {"role", "content"}, and what tools need."""


class ForeignTemplates:
    """One rendering process, started when it is first needed. Safe on any thread, one rendering at a time.

    A template that takes too long or too much memory is not tried again.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._refused: set[str] = set()

    def render(
        self,
        template: str,
        turns: Sequence[Turn],
        special: Mapping[str, object],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        answer: bool = True,
    ) -> str:
        """The text of a conversation, with the schemas of the `tools` it offers, up to where the assistant's turn
        begins, which comes next where an `answer` is wanted.

        Raises InvalidRequest if the template rejects the turns, and AdapterRefused if it does not end in time.
        """
        request = json.dumps(
            {
                "template": template,
                "turns": list(turns),
                "tools": tools and list(tools),
                "answer": answer,
                "special": dict(special),
            }
        )
        with self._lock:
            if template in self._refused:
                raise _refused()
            connection = self._connection or self._start()
            try:
                rendered = _ask(connection, request)
            except OSError:  # the process has ended
                self._stop()
                self._refused.add(template)
                raise _refused() from None
        if "error" in rendered:
            raise InvalidRequest(
                f"the adapter's chat template rejects these messages: {rendered['error'][:300]}", param="messages"
            )
        return str(rendered["text"])

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> socket.socket:
        """Start the process and wait until it has rendered something: then only templates take time."""
        own, other = socket.socketpair()
        with other:
            command = [sys.executable, "-m", "dlp_core.text.rendering", str(other.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)
        self._connection = own
        own.settimeout(_HANG_SECONDS)
        own.sendall(json.dumps(_FIRST).encode() + b"\n")
        if not own.recv(2**16):
            raise OSError("the process that renders chat templates did not start")
        return own

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None


def _ask(connection: socket.socket, request: str) -> dict[str, str]:
    connection.sendall(request.encode() + b"\n")
    received = bytearray()
    while not received.endswith(b"\n"):
        part = connection.recv(2**16)
        if not part or len(received) > _ANSWER_BYTES:
            raise OSError("no answer")
        received += part
    answer: dict[str, str] = json.loads(received)
    return answer


def _refused() -> AdapterRefused:
    return AdapterRefused(
        f"the adapter's chat template does not end within {CPU_SECONDS:g} s, or needs too much memory; publish the "
        "adapter with another one"
    )
