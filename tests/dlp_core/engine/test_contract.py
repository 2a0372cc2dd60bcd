"""What every engine does, by the engine over transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dlp_core.engine.protocol import Engine
from dlp_core.generation.engines import load_engine
from dlp_core.residency.sources import FolderSource
from tests.support.engine_contract import EngineContract
from tests.support.engines import ACTIVATED, LIMITS, TARGETS, Reference, save_models

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[Engine]:
    source = FolderSource({name: folder / name for name in (*TARGETS, *ACTIVATED, "embedding")})
    engine = load_engine(folder / "base", source, LIMITS, dtype="float32", threads=1).engine
    await engine.start()
    yield engine
    await engine.stop()


class TestTransformers(EngineContract):
    pass
