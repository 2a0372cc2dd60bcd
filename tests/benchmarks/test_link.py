"""The relay of the cold starts has the latency and bandwidth it is given, and loses nothing."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest

from benchmarks.measure.link import Link, Pace, Shape
from tests.support.waiting import HANG_S

DATA = random.Random(1).randbytes(2_000_000)


@pytest.fixture
def server_port():  # type: ignore[no-untyped-def]
    """A server that answers any request with DATA."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1)
                connection.sendall(DATA)

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_bytes_queue_for_the_bandwidth_and_arrive_after_the_latency() -> None:
    pace = Pace(Shape(latency=0.5, bandwidth=100))
    assert [pace.arrival_time(100, now) for now in (10.0, 10.0, 11.0, 20.0)] == [11.5, 12.5, 13.5, 21.5]


def test_a_link_loses_nothing_and_is_no_faster_than_asked(server_port: int) -> None:
    with (
        Link(server_port, Shape(latency=0.1, bandwidth=10e6)) as link,
        socket.create_connection(("127.0.0.1", link.port), timeout=HANG_S) as client,
    ):
        began = time.perf_counter()
        client.sendall(b"?")
        received = client.recv(1)
        first = time.perf_counter() - began
        while chunk := client.recv(65536):
            received += chunk
        seconds = time.perf_counter() - began
    assert received == DATA
    assert first >= 0.1
    assert seconds >= 0.3  # 0.1 s, and 2 MB at 10 MB/s
