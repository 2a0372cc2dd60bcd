"""One engine over vLLM for all tests of this folder that need no other: a start takes a minute."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.engines import Reference, save_models
from tests.support.vllm_engine import running

if TYPE_CHECKING:
    from dlp_core.vllm.engine import VllmEngine

if find_spec("vllm") is not None:
    with warnings.catch_warnings():  # errors in this suite, but these are not ours
        warnings.simplefilter("ignore")
        import vllm.v1.engine.core
        import vllm.v1.worker.cpu_worker  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """Not an error when the last objects go: vLLM leaves a context of ZeroMQ open for each engine."""
    warnings.filterwarnings("ignore", "Unclosed context <zmq", ResourceWarning)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm") / "models"
    root.mkdir()
    return save_models(root)


@pytest.fixture(scope="package")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    async with running(folder) as engine:
        yield engine
