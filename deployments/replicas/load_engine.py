"""Loads the engine of a backbone replica. Imports torch, so import it only inside the replica."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deployments.args import AppArgs
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.loading import load
from dlp_core.residency.sources import AdapterSource
from dlp_core.text.codec import TextCodec


def load_engine(
    args: AppArgs, source: AdapterSource, *, device: str, on_load: Callable[[str, str, float], None]
) -> tuple[FusedEngine, TextCodec]:
    """The engine on `device` ("cpu", "cuda"), not started, and the codec of its tokens.

    Raises InvalidRequest if the base model is not a model folder.
    """
    loaded = load(
        Path(args.base_model),
        source,
        args.engine,
        dtype=args.dtype,
        device=device,
        threads=args.threads,
        on_load=on_load,
    )
    return loaded.engine, loaded.codec
