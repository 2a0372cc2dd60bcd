"""The engine that a config names, the codec of its tokens, and what finds calls of tools in its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.protocol import Engine
from dlp_core.residency.sources import AdapterSource
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import CallReaders


class LoadedEngine(NamedTuple):
    """An engine, not yet started, and the codec of its tokens. `calls` finds the calls of tools in its answers; without
    it, its answers have none."""

    engine: Engine
    codec: TextCodec
    calls: CallReaders | None = None


def load_engine(
    folder: Path,
    source: AdapterSource,
    config: EngineConfig,
    *,
    dtype: str,
    device: str = "cpu",
    threads: int | None = None,
    on_load: Callable[[str, str, float], None] | None = None,
) -> LoadedEngine:
    """Load the model in `folder` in `dtype` ("bfloat16", ...), for adapters of `source`, into the engine `config.kind`.

    `device` ("cpu", "cuda") is where engine transformers computes; vLLM knows by itself. `threads` are those of a CPU;
    `on_load` is passed to the residency. Raises InvalidRequest if the folder does not hold a model, or if the engine is
    not installed.
    """
    if config.kind == "vllm":
        from dlp_core.vllm import loading as vllm

        inside = vllm.load(folder, source, config, dtype=dtype, threads=threads, on_load=on_load)
        return LoadedEngine(inside.engine, inside.codec, inside.calls)
    from dlp_core.engine import loading as transformers

    loaded = transformers.load(folder, source, config, dtype=dtype, device=device, threads=threads, on_load=on_load)
    return LoadedEngine(loaded.engine, loaded.codec)
