"""One cluster for all files here. It is started while the store is down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.application import Application, running

QUEUE = 6


@pytest.fixture(scope="package")
def folder(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(parts, tmp_path_factory.mktemp("app"), dirs_exist_ok=True)


@pytest.fixture(scope="package")
def app(folder: Path) -> Iterator[Application]:
    with running(folder, queue=QUEUE, store_is_late=True) as found:
        yield found
