"""From a model folder to an engine over its adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.memory import measure
from dlp_core.engine.sizing import cache_bytes_per_token, sized_cache
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layers import Fusion, Graphs, install
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import AdapterSource, SpokenSource
from dlp_core.store.model_folder import check_model_folder
from dlp_core.text.codec import TextCodec

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """An engine, not yet started, and its parts. `codec` encodes and decodes its tokens."""

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
    """Load the model in `folder` onto `device` ("cpu", "cuda") in `dtype` ("bfloat16", ...), for adapters of `source`.
    `threads` sets torch's thread count; `on_load` is passed to the residency.

    Raises InvalidRequest if the folder does not hold a model, or nothing of the device's memory is left for a cache.
    """
    check_model_folder(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    # straight to the device: host memory may be smaller than the model
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), device_map=device)
    model = loaded.eval()
    if config.memory_fraction is not None:
        if model.device.type != "cuda":
            raise InvalidRequest("engine setting memory_fraction is for CUDA devices; use cache_tokens")
        per_token = cache_bytes_per_token(model.config.get_text_config(), model.dtype.itemsize)
        tokens = sized_cache(config, measure(model, config), per_token)
        log.info("the cache holds %d tokens, which memory_fraction %g leaves", tokens, config.memory_fraction)
        config = replace(config, cache_tokens=tokens)
    graphs = Graphs(min(config.max_requests, config.batch_tokens), config.slots) if config.cuda_graphs else None
    fusion = install(model, graphs=graphs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    residency = Residency(
        SpokenSource(source, tokenizer.get_vocab()),
        fusion,
        config.slots,
        slot_bytes=config.slot_bytes,
        host_bytes=config.host_bytes,
        on_load=on_load,
    )
    engine = FusedEngine(model, fusion, residency, config, tokenizer=tokenizer)
    codec = TextCodec(tokenizer, context=engine.context)
    return Loaded(engine, codec, model, fusion, residency, tokenizer, config)
