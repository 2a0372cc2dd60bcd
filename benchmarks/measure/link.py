"""A relay that adds latency and limits bandwidth, because loopback has neither.

    with Link(port, Shape(latency=0.02, bandwidth=100e6)) as link:
        ...  # 127.0.0.1:link.port is the server at the far end

Bytes from the server arrive `latency` seconds later; all connections together get `bandwidth` bytes a second. Bytes to
the server arrive at once. The relay runs in a separate process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from typing import NamedTuple, Self

_CHUNK = 64 * 1024


class Shape(NamedTuple):
    """`latency` in seconds, `bandwidth` in bytes a second."""

    latency: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{1000 * self.latency:g} ms, {self.bandwidth / 1e6:g} MB/s"


class Pace:
    """Arrival times of bytes on a link shared by all connections."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._free_at = 0.0  # when the link has sent everything received so far

    def arrival_time(self, size: int, now: float) -> float:
        """When `size` bytes that the link receives at `now` arrive, both in seconds on one clock."""
        self._free_at = max(self._free_at, now) + size / self._shape.bandwidth
        return self._free_at + self._shape.latency


class Link:
    """Listens on a free port of 127.0.0.1 inside a `with` block."""

    def __init__(self, server_port: int, shape: Shape) -> None:
        self._command = [sys.executable, "-m", __name__, str(server_port), *map(str, shape)]
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closing its standard input ends it


async def relay(server_port: int, shape: Shape) -> None:
    """Print the port and relay until standard input ends."""
    pace = Pace(shape)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port, limit=_CHUNK)
        await asyncio.gather(_copy(reader, server_writer), _delay(server_reader, writer, pace))

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _delay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: Pace) -> None:
    """Copy each chunk at its arrival time; chunks in flight wait in a queue."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    clock = asyncio.get_running_loop().time

    async def read() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                await queue.put((pace.arrival_time(len(data), clock()), data))
        await queue.put((0.0, b""))

    async def write() -> None:
        while (item := await queue.get())[1]:
            due, data = item
            await asyncio.sleep(max(0.0, due - clock()))
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
        writer.close()

    await asyncio.gather(read(), write())


if __name__ == "__main__":
    port, latency, bandwidth = sys.argv[1:]
    asyncio.run(relay(int(port), Shape(float(latency), float(bandwidth))))
