"""The local application before it starts anything: its port. What it serves is tests/cluster's business."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deployments.local.app import AppFailed, LocalApp, _RayFailed, load_config
from dlp_core.errors import InvalidRequest
from tests.support.paths import ROOT


def local_app(folder: Path, port: int | None = None) -> LocalApp:
    return LocalApp(load_config(ROOT / "serve_config.yaml"), bank=str(folder), base_model=folder, port=port)


def test_without_a_port_it_takes_a_free_one_and_says_which(tmp_path: Path) -> None:
    app = local_app(tmp_path)
    port = urlsplit(app.url).port
    assert port
    assert app.config["http_options"] == {"host": "127.0.0.1", "port": port}
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_in_use_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"port {port} is not free"):
            local_app(tmp_path, port).__enter__()


class Late(LocalApp):
    """Ray's processes are late a number of times."""

    def late(self, times: int) -> Late:
        self.left, self.asked = times, 0
        return self

    def check(self) -> Any:
        return None

    def _start(self, schema: Any) -> None:
        self.asked += 1
        if self.asked <= self.left:
            raise _RayFailed("Ray did not start: node timed out")

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("times", [0, 2])
def test_ray_is_asked_again_where_its_processes_were_late(tmp_path: Path, times: int) -> None:
    with Late(load_config(ROOT / "serve_config.yaml"), bank="bank", base_model=tmp_path).late(times) as app:
        assert app.asked == times + 1


def test_ray_is_not_asked_for_ever(tmp_path: Path) -> None:
    app = Late(load_config(ROOT / "serve_config.yaml"), bank="bank", base_model=tmp_path).late(9)
    with pytest.raises(AppFailed, match="node timed out"):
        app.__enter__()
    assert app.asked == 3
