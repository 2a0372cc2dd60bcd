"""The engine that a backbone replica runs, by `engine.kind`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ray

from deployments.args import AppArgs
from deployments.replicas.process import lasting_imports
from dlp_core.residency.sources import AdapterSource

if TYPE_CHECKING:
    from dlp_core.engine.protocol import Engine
    from dlp_core.text.codec import TextCodec


class LoadedEngine(NamedTuple):
    """An engine, not yet started, and the codec of its tokens."""

    engine: Engine
    codec: TextCodec


def load_engine(args: AppArgs, source: AdapterSource, *, on_load: Callable[[str, str, float], None]) -> LoadedEngine:
    """Load what `args` names, for adapters of `source`. `on_load` is that of Residency.

    Raises InvalidRequest if the folder does not hold a model, or if the environment lacks the engine.
    """
    folder = Path(args.base_model)
    if args.engine.kind == "vllm":
        with lasting_imports():
            from dlp_core.vllm import loading as vllm

        inside = vllm.load(folder, source, args.engine, dtype=args.dtype, threads=args.threads, on_load=on_load)
        return LoadedEngine(inside.engine, inside.codec)
    with lasting_imports():
        from dlp_core.engine import loading as transformers

    # A GPU is used where serve_config.yaml gives this deployment one, and only there.
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    loaded = transformers.load(
        folder, source, args.engine, dtype=args.dtype, device=device, threads=args.threads, on_load=on_load
    )
    return LoadedEngine(loaded.engine, loaded.codec)
