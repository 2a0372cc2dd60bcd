"""From a model folder to an engine over its adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layers import Fusion, install
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import AdapterSource
from dlp_core.text.codec import TextCodec


class Loaded(NamedTuple):
    """An engine, not started, and what it is made of. `codec` speaks its tokens."""

    engine: FusedEngine
    codec: TextCodec
    model: Any
    fusion: Fusion
    residency: Residency
    tokenizer: Any
    config: EngineConfig


def load(
    folder: Path,
    source: AdapterSource,
    config: EngineConfig,
    *,
    dtype: str,
    device: str,
    threads: int | None = None,
    on_load: Callable[[str, str, float], None] | None = None,
) -> Loaded:
    """Loads the model in `folder` to `device` ("cpu", "cuda") in `dtype` ("bfloat16", ...), for adapters of `source`.
    `threads` are torch's, `on_load` is the residency's.

    Raises InvalidRequest if the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"base model {str(folder)!r} is not a model folder on this node: it has no config.json")
    if threads is not None:
        torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = model.to(device).eval()
    fusion = install(model)
    residency = Residency(
        source, fusion, config.slots, slot_bytes=config.slot_bytes, host_bytes=config.host_bytes, on_load=on_load
    )
    engine = FusedEngine(model, fusion, residency, config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    codec = TextCodec(tokenizer, context=engine.context)
    return Loaded(engine, codec, model, fusion, residency, tokenizer, config)
