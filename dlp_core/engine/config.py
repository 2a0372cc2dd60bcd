"""Settings of the engine. Plain values with bounds; where they come from is the caller's business."""

from __future__ import annotations

from dataclasses import dataclass

from dlp_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Bounds of one engine. Every field is read by the engine; raises InvalidRequest on a value below 1."""

    slots: int = 16
    """Adapters on the device at once. A mix never needs more than this."""
    slot_bytes: int | None = None
    """And at most so many bytes of them, as they are stored; None sets no limit."""
    host_bytes: int = 2**30
    """Adapters kept in host memory, ready to be copied to the device, in bytes."""
    max_requests: int = 64
    """Requests admitted or waiting; one more is told EngineFull."""
    page_tokens: int = 32
    """Tokens of one block of the paged cache."""
    cache_tokens: int = 16_384
    """Tokens the paged cache holds over all requests."""
    batch_tokens: int = 256
    """Tokens of one forward pass; longer prompts are prefilled in chunks."""
    stall_seconds: float = 60.0
    """Without a finished step for this long while requests run, the engine calls itself failed."""

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
        if self.page_tokens < 4:
            raise InvalidRequest(f"engine setting page_tokens is {self.page_tokens}; the paged cache needs at least 4")
