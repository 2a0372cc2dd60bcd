"""Free ports for servers on this machine."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, closing
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _EPHEMERAL = 20_000, 32_768  # Ray's workers listen below, as `ray start` sets them; Linux's default
_TRIES = 1000


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that were free when checked.

    They lie below the ephemeral ports, which the kernel gives to any connection at any moment: a port of those that is
    free now can be taken before its server binds it. Raises OSError if so many are not found.
    """
    last = _first_ephemeral() - 1
    candidates = random.SystemRandom().sample(range(_FIRST, last), min(_TRIES, last - _FIRST))
    found: list[int] = []
    with ExitStack() as held:
        for port in candidates:
            if len(found) == count:
                break
            probe = held.enter_context(closing(socket.socket()))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports between {_FIRST} and {last}")
    return found


def free_port() -> int:
    """One port, as `free_ports` finds them."""
    return free_ports(1)[0]


def _first_ephemeral() -> int:
    try:
        first = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL
    return first if first > _FIRST + _TRIES else 65_536  # a machine whose ephemeral ports begin lower: any port
