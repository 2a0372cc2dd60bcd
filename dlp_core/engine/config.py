"""Engine settings: plain values with bounds. Where they come from is up to the caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlp_core.errors import InvalidRequest

Kind = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """What engine vllm alone reads (dlp_core/vllm). Raises InvalidRequest on no targets or a value below 1."""

    targets: tuple[str, ...] | None = None
    """Names of the modules that adapters may change (`q_proj`); None: all linear layers. Fewer cost less."""
    eager: bool = False
    """Leave out compilation: the engine starts sooner and runs slower."""
    tensor_parallel: int = 1
    """Processes that the model's layers are split over, each with a device of its own."""
    tool_parser: str | None = None
    """Name of the parser of vLLM that finds calls of tools in the answers of this model ("hermes"); None: requests
    with tools are refused."""

    def __post_init__(self) -> None:
        if self.targets is not None and not self.targets:
            raise InvalidRequest("engine setting vllm.targets is empty; name modules such as q_proj, or leave it out")
        if self.tensor_parallel < 1:
            raise InvalidRequest(f"engine setting vllm.tensor_parallel is {self.tensor_parallel}; it must be 1 or more")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine, and which one. Raises InvalidRequest on a value below 1."""

    kind: Kind = "transformers"
    """What runs the model: transformers in the replica's process, or vLLM (docs/vllm.md)."""
    slots: int = 16
    """Adapters on the device at once, which bounds the adapters of a mix."""
    slot_bytes: int | None = None
    """Bytes of adapters on the device at once, as stored; None sets no limit."""
    host_bytes: int = 2**30
    """Bytes of adapters kept in host memory, ready to be copied to the device."""
    max_requests: int = 64
    """Requests running or waiting; any further request gets EngineFull."""
    page_tokens: int = 32
    """Tokens per block of the paged cache."""
    cache_tokens: int = 16_384
    """Tokens the paged cache holds for all requests together."""
    memory_fraction: float | None = None
    """Part of a CUDA device's memory that weights, adapters (`slot_bytes`), workspace and cache may take together; the
    cache gets what the others leave, in place of `cache_tokens`. None: `cache_tokens` as it is."""
    batch_tokens: int = 256
    """Tokens per forward pass; longer prompts are prefilled in chunks."""
    cuda_graphs: bool = True
    """Replay passes that only decode as CUDA graphs, on devices that have them. They are captured at the start."""
    stall_seconds: float = 60.0
    """If no step finishes for this long while requests run, the engine reports itself as failed."""
    vllm: VllmConfig = VllmConfig()
    """What engine vllm alone reads."""

    def __post_init__(self) -> None:
        for field in (
            "slots",
            "slot_bytes",
            "host_bytes",
            "max_requests",
            "page_tokens",
            "cache_tokens",
            "batch_tokens",
            "stall_seconds",
        ):
            if (value := getattr(self, field)) is not None and value < 1:
                raise InvalidRequest(f"engine setting {field} is {value}; it must be at least 1")
        if self.memory_fraction is not None:
            self._check_memory_fraction(self.memory_fraction)
        if self.page_tokens < 4:
            raise InvalidRequest(f"engine setting page_tokens is {self.page_tokens}; the paged cache needs at least 4")

    def _check_memory_fraction(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise InvalidRequest(f"engine setting memory_fraction is {fraction:g}; it must be above 0 and at most 1")
        if self.slot_bytes is None:
            raise InvalidRequest("engine setting memory_fraction needs slot_bytes: adapters share the memory with it")
        if self.kind == "vllm":
            raise InvalidRequest("engine setting memory_fraction is for engine transformers; vllm takes cache_tokens")
