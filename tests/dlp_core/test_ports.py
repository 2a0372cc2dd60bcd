import socket
from pathlib import Path

import pytest

from dlp_core import ports


def test_they_differ_and_can_be_listened_on() -> None:
    found = ports.free_ports(8)
    assert len(set(found)) == 8
    for port in found:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_the_kernel_gives_them_to_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    (tmp_path / "range").write_text("22000\t60999\n")
    assert all(port < 22_000 for port in ports.free_ports(16))


def test_a_port_in_use_is_not_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_ports(2)
    monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda *_: [taken, free])
    with socket.create_server(("127.0.0.1", taken)):
        assert ports.free_port() == free
        with pytest.raises(OSError, match="no 2 free ports"):
            ports.free_ports(2)


@pytest.mark.parametrize("setting", ["", "1024\t65535\n"])
def test_a_machine_that_says_nothing_or_gives_all_ports(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    (tmp_path / "range").write_text(setting)
    assert ports.free_port() >= 20_000
