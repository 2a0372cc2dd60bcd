"""What all applications on a cluster are made of, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from examples.tiny.build import write_bank


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with its router, and the base model."""
    folder = tmp_path_factory.mktemp("parts")
    write_bank(folder)
    return folder


@pytest.fixture(scope="module")
def folder(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of them for the application of one file."""
    return shutil.copytree(parts, tmp_path_factory.mktemp("app"), dirs_exist_ok=True)
