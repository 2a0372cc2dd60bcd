"""What a CUDA device has for a model that is on it, measured.

Not yet run on a device.
"""

from __future__ import annotations

from typing import Any

import torch

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.sizing import Memory, fixed_score_bytes, score_rows


@torch.no_grad()
def measure(model: Any, config: EngineConfig) -> Memory:
    """What the device of this model has. Runs the largest pass once, on tokens that nobody asked for."""
    device = model.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    rows = score_rows(config)
    ids = torch.zeros(1, config.batch_tokens, dtype=torch.long, device=device)
    scores = model(ids, logits_to_keep=rows).logits.float()
    del scores
    workspace = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    fixed = fixed_score_bytes(model.config.get_text_config().vocab_size, rows)
    return Memory(total, free, workspace + fixed)
