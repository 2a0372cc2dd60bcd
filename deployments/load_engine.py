"""Builds the engine of a backbone replica from a model folder. Imports torch: only inside the replica."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.args import AppArgs
from dlp_core.engine import FusedEngine
from dlp_core.errors import InvalidRequest
from dlp_core.layers import install
from dlp_core.residency import AdapterSource, Residency
from dlp_core.text import TextCodec


def load_engine(
    args: AppArgs, source: AdapterSource, *, device: str, on_load: Callable[[str, str, float], None]
) -> tuple[FusedEngine, TextCodec]:
    """The engine on `device` ("cpu", "cuda"), not started, and the codec that speaks its tokens.

    Raises InvalidRequest if the base model is not a folder with a model.
    """
    folder = Path(args.base_model)
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"base model {str(folder)!r} is not a model folder on this node: it has no config.json")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype))
    model = model.to(device).eval()
    fusion = install(model)
    config = args.engine
    residency = Residency(
        source, fusion, config.slots, slot_bytes=config.slot_bytes, host_bytes=config.host_bytes, on_load=on_load
    )
    engine = FusedEngine(model, fusion, residency, config)
    return engine, TextCodec(AutoTokenizer.from_pretrained(folder), context=engine.context)
