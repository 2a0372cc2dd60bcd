"""The local application before it starts anything: its port. What it serves is tests/cluster's business."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deployments.local.app import LocalApp, load_config
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
