"""Engines over vLLM for tests.

Nothing here imports vLLM before an engine is started.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dlp_core.engine.config import EngineConfig, VllmConfig
from dlp_core.residency.sources import FolderSource
from tests.support.engines import ACTIVATED, LIMITS, TARGETS
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from dlp_core.vllm.engine import VllmEngine

CONFIG = replace(LIMITS, kind="vllm", vllm=VllmConfig(eager=True))


@asynccontextmanager
async def running(
    folder: Path,
    config: EngineConfig = CONFIG,
    *,
    adapters: Sequence[str] = (*TARGETS, *ACTIVATED, "embedding"),
    plugin: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[VllmEngine]:
    """An engine for the model `base` and the `adapters` in a folder, with the plugin that keys blocks by their mixes or
    without, started with more variables in its environment."""
    from dlp_core.vllm.loading import load

    source = FolderSource({name: folder / name for name in adapters})
    with pytest.MonkeyPatch.context() as patch:
        plugins = {} if plugin else {"VLLM_PLUGINS": ""}
        for name, value in ({"VLLM_LOGGING_LEVEL": "WARNING"} | plugins | dict(environment or {})).items():
            patch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)
        if plugin:
            _let_the_plugin_be_found(patch, folder.parent / "site")
        engine = load(folder / "base", source, config, dtype="float32", threads=1).engine
        await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _let_the_plugin_be_found(patch: pytest.MonkeyPatch, site: Path) -> None:
    """Write what pip writes of this project's entry points into the folder `site` and put it on the path, of new
    processes too. Where pip has installed the project, nothing is to be done."""
    group = "vllm.general_plugins"
    if entry_points(group=group, name="dlp"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"dlp_serve-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"][group].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    patch.syspath_prepend(site)
    assert entry_points(group=group, name="dlp")
