"""How the memory of a CUDA device is divided: what the cache may have after weights, adapters and workspace.

Not yet run on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dlp_core.engine.config import EngineConfig
from dlp_core.errors import InvalidRequest

_MARGIN = 2**28
"""Bytes for what nobody counts: CUDA graphs' own memory, workspaces of libraries, fragments."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device, once the model's weights are on it."""

    total: int
    free: int
    """Of all: the weights, the context, and what other processes have are gone."""
    workspace: int
    """What the largest pass needs at once."""


def sized_cache(config: EngineConfig, memory: Memory, bytes_per_token: int) -> int:
    """The tokens of cache that fit into `config.memory_fraction` of the device, in whole pages.

    Raises InvalidRequest if not even one page does, with the bytes of each part.
    """
    assert config.memory_fraction is not None
    assert config.slot_bytes is not None
    kept = int((1 - config.memory_fraction) * memory.total)
    room = memory.free - kept - memory.workspace - config.slot_bytes - _MARGIN
    pages = room // (bytes_per_token * config.page_tokens)
    if pages < 1:
        raise InvalidRequest(
            f"nothing is left for cached tokens: {_gb(memory.free)} of {_gb(memory.total)} are free beside "
            f"the weights, of which memory_fraction {config.memory_fraction:g} leaves {_gb(kept)} alone, "
            f"slot_bytes takes {_gb(config.slot_bytes)} and a pass of batch_tokens {config.batch_tokens} "
            f"{_gb(memory.workspace + _MARGIN)}; lower one of them, or take a larger device"
        )
    return pages * config.page_tokens


def cache_bytes_per_token(model: Any) -> int:
    """Of keys and values in all layers."""
    config = model.config.get_text_config()
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * key_heads * size * model.dtype.itemsize)


@torch.no_grad()
def measure(model: Any, config: EngineConfig) -> Memory:
    """What the device of this model has. Runs the largest pass once, on tokens that nobody asked for."""
    device = model.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    rows = min(config.max_requests, config.batch_tokens)
    ids = torch.zeros(1, config.batch_tokens, dtype=torch.long, device=device)
    scores = model(ids, logits_to_keep=rows).logits.float()
    del scores
    workspace = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    fixed_scores = rows * model.config.get_text_config().vocab_size * 4  # that graphs leave theirs in
    return Memory(total, free, workspace + fixed_scores)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
