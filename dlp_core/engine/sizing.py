"""How the memory of a CUDA device is divided, as arithmetic: what an engine computes once its weights are on the
device, and what can be said of it before. No torch.

Not yet run on a device: `DRIVER` and `pass_bytes` are estimates where an engine measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.model_size import BYTES, ModelSize
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layout import packed_elements, pinned_bytes

if TYPE_CHECKING:
    from dlp_core.adapter.checks import LayerShape

GIB = 2**30
MARGIN = 2**28
"""Bytes for what nobody counts: CUDA graphs' own memory, workspaces of libraries, fragments."""
DRIVER = 2**29
"""Bytes of a device that CUDA and its libraries take before the first tensor. An estimate; an engine measures it."""
PROCESSES = 4 * GIB
"""Bytes of host memory in the pod of a backbone on a GPU: 2 GiB for Ray and Python, as much for CUDA's libraries. An
estimate."""
SHARED = GIB // 2
"""Bytes of /dev/shm in a backbone's pod."""
SCRATCH = {"tmp": 4 * GIB, "home": GIB, "logs": GIB}
"""Bytes of a backbone pod's disk, beside the model and the adapters."""
MOST_SLOTS = 64
"""Slots that are suggested at most."""

_SLOT_STEP = 2**26
_FILES = 101
"""Hundredths of an adapter's factors that its files take: engines count the files, with headers and config."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device, once the model's weights are on it."""

    total: int
    free: int
    """Of all: the weights, the context, and what other processes have are gone."""
    workspace: int
    """What the largest pass needs at once."""


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """How a device's bytes would be divided. All but `requests` and the tokens are bytes."""

    total: int
    weights: int
    workspace: int
    """Of the largest pass, with MARGIN and DRIVER."""
    adapter: int
    """The largest adapter."""
    slots: int
    slot_bytes: int
    left_alone: int
    """What memory_fraction leaves to others."""
    bytes_per_token: int
    cache_tokens: int
    """0: the model does not fit."""
    context: int
    """Tokens of prompt and answer of one request."""
    requests: int
    """That run at once at that context."""
    missing: str | None
    """Why the cache has no tokens."""

    @property
    def cache_bytes(self) -> int:
        return self.cache_tokens * self.bytes_per_token


@dataclass(frozen=True, slots=True)
class PodNeeds:
    """What a backbone's pod needs beside the device, in bytes."""

    pinned: int
    """Of host memory, for adapters ready to be copied: engine.host_bytes. It cannot be reclaimed."""
    host_adapters: int
    """Adapters that are ready at once."""
    shared: int
    memory: int
    """All of the pod's memory, with `pinned`, `shared` and the processes."""
    disk_cache: int
    """The volume of the adapters' disk cache."""
    model: int
    """The volume of the base model."""
    ephemeral_storage: int
    """All of the pod's disk, with both volumes."""


def sized_cache(config: EngineConfig, memory: Memory, bytes_per_token: int) -> int:
    """The tokens of cache that fit into `config.memory_fraction` of the device, in whole pages.

    Raises InvalidRequest if not even one page does, with the bytes of each part.
    """
    assert config.memory_fraction is not None
    assert config.slot_bytes is not None
    kept = _left_alone(config, memory.total)
    room = memory.free - kept - memory.workspace - config.slot_bytes - MARGIN
    pages = room // (bytes_per_token * config.page_tokens)
    if pages < 1:
        raise InvalidRequest(
            f"nothing is left for cached tokens: {_gb(memory.free)} of {_gb(memory.total)} are free beside "
            f"the weights, of which memory_fraction {config.memory_fraction:g} leaves {_gb(kept)} alone, "
            f"slot_bytes takes {_gb(config.slot_bytes)} and a pass of batch_tokens {config.batch_tokens} "
            f"{_gb(memory.workspace + MARGIN)}; lower one of them, or take a larger device"
        )
    return int(pages * config.page_tokens)


def cache_bytes_per_token(config: Any, itemsize: int) -> int:
    """Of keys and values in all layers. `config` is a text model's, `itemsize` the bytes of a number."""
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * key_heads * size * itemsize)


def score_rows(config: EngineConfig) -> int:
    """Rows of a pass that scores are computed for, at most."""
    return min(config.max_requests, config.batch_tokens)


def fixed_score_bytes(vocabulary: int, rows: int) -> int:
    """Of the buffer that CUDA graphs leave scores in."""
    return rows * vocabulary * 4


def pass_bytes(model: Any, config: EngineConfig, itemsize: int) -> int:
    """What the largest pass needs at once, as an engine of `config` over a model of this config would measure it. An
    estimate: the widest layer's inputs and outputs or the scores, whichever is more."""
    width = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    layer = config.batch_tokens * (4 * model.hidden_size + 3 * width) * itemsize
    scores = score_rows(config) * model.vocab_size * (itemsize + 4)
    return int(max(layer, scores)) + fixed_score_bytes(model.vocab_size, score_rows(config))


def adapter_bytes(layers: Mapping[str, LayerShape], rank: int, vocabulary: int, dtype: str) -> int:
    """Bytes of an adapter of `rank` on every linear layer but the output head, packed in `dtype`. `layers` are those of
    dlp_core.fusion.layers.read_shapes, `vocabulary` the number of tokens the model knows."""
    linear = (
        shape
        for path, shape in layers.items()
        if shape.lora and vocabulary not in (shape.d_in, shape.d_out) and not _is_embedding(path.rpartition(".")[2])
    )
    return packed_elements((rank, shape.d_in, shape.d_out) for shape in linear) * BYTES[dtype]


def fit_device(
    model: ModelSize, config: EngineConfig, *, dtype: str, total: int, adapter: int, slots: int | None, context: int
) -> DeviceFit:
    """How an engine of `config` would divide a device of `total` bytes over a model in `dtype`, with adapters of
    `adapter` bytes. `slots`: None suggests as many as take a third of what is left beside the weights.

    `config` needs a memory_fraction; its slots and slot_bytes are not read.
    """
    assert config.memory_fraction is not None
    itemsize = BYTES[dtype]
    memory = Memory(total, total - model.weights - DRIVER, pass_bytes(model.config, config, itemsize))
    left_alone = _left_alone(config, total)
    if slots is None:
        slots = _suggested_slots(memory.free - left_alone - memory.workspace - MARGIN, adapter)
    slot_bytes = -(-slots * adapter * _FILES // 100 // _SLOT_STEP) * _SLOT_STEP
    per_token = cache_bytes_per_token(model.config, itemsize)
    tokens, missing = 0, None
    try:
        tokens = sized_cache(replace(config, slots=slots, slot_bytes=slot_bytes), memory, per_token)
    except InvalidRequest as error:
        missing = error.message
    pages = -(-context // config.page_tokens)
    return DeviceFit(
        total=total,
        weights=model.weights,
        workspace=memory.workspace + MARGIN + DRIVER,
        adapter=adapter,
        slots=slots,
        slot_bytes=slot_bytes,
        left_alone=left_alone,
        bytes_per_token=per_token,
        cache_tokens=tokens,
        context=context,
        requests=min(config.max_requests, tokens // config.page_tokens // pages),
        missing=missing,
    )


def pod_needs(model: ModelSize, *, adapter: int, host_bytes: int, disk_cache: int) -> PodNeeds:
    """What the pod of a backbone on a GPU needs. Weights go straight to the device, so host memory does not hold them.

    `disk_cache` is cache.max_bytes; its volume is a fifth larger, because a pod beyond its limit is evicted.
    """
    cache = _whole_gib(disk_cache * 6 // 5)
    files = _whole_gib(model.files * 11 // 10)  # tokenizer files beside the weights, and the file system's own
    return PodNeeds(
        pinned=host_bytes,
        host_adapters=host_bytes // pinned_bytes(adapter),
        shared=SHARED,
        memory=_whole_gib(PROCESSES + host_bytes + SHARED),
        disk_cache=cache,
        model=files,
        ephemeral_storage=cache + files + sum(SCRATCH.values()),
    )


def _suggested_slots(room: int, adapter: int) -> int:
    """A power of two."""
    fitting = min(MOST_SLOTS, max(1, room // 3 // adapter))
    return int(1 << (fitting.bit_length() - 1))


def _is_embedding(name: str) -> bool:
    return name in ("wte", "wpe", "lm_head") or "embed" in name


def _left_alone(config: EngineConfig, total: int) -> int:
    assert config.memory_fraction is not None
    return int((1 - config.memory_fraction) * total)


def _whole_gib(size: int) -> int:
    return -(-size // GIB) * GIB


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
