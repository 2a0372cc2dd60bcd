"""Exact fusion of weighted LoRA adapters, and all that serving a bank of them takes. See docs/library.md.

The names below are the public surface. Each is imported when it is first asked for: `import dlp_core.mix` needs no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlp_core.adapter import Adapter, LoRAWeights, check_base, check_fits, read_adapter
    from dlp_core.chat import Message
    from dlp_core.config import EngineConfig
    from dlp_core.engine import FusedEngine, Plan, Sampling, TokenEvent, TokenLogprob
    from dlp_core.errors import DLPError
    from dlp_core.layers import Fusion, install
    from dlp_core.mix import EMPTY_MIX, Mix, Span, select_top_p
    from dlp_core.ops.segments import Segment
    from dlp_core.residency import AdapterSource, FolderSource, Residency
    from dlp_core.router import Router, Routing
    from dlp_core.sentence_mixes import SentenceMixes
    from dlp_core.text import Prompt, TextCodec

__all__ = [
    "Adapter",
    "AdapterSource",
    "DLPError",
    "EMPTY_MIX",
    "EngineConfig",
    "FolderSource",
    "FusedEngine",
    "Fusion",
    "LoRAWeights",
    "Message",
    "Mix",
    "Plan",
    "Prompt",
    "Residency",
    "Router",
    "Routing",
    "Sampling",
    "Segment",
    "SentenceMixes",
    "Span",
    "TextCodec",
    "TokenEvent",
    "TokenLogprob",
    "check_base",
    "check_fits",
    "install",
    "read_adapter",
    "select_top_p",
]

_HOMES = {
    "adapter": ("Adapter", "LoRAWeights", "check_base", "check_fits", "read_adapter"),
    "chat": ("Message",),
    "config": ("EngineConfig",),
    "engine": ("FusedEngine", "Plan", "Sampling", "TokenEvent", "TokenLogprob"),
    "errors": ("DLPError",),
    "layers": ("Fusion", "install"),
    "mix": ("EMPTY_MIX", "Mix", "Span", "select_top_p"),
    "ops.segments": ("Segment",),
    "residency": ("AdapterSource", "FolderSource", "Residency"),
    "router": ("Router", "Routing"),
    "sentence_mixes": ("SentenceMixes",),
    "text": ("Prompt", "TextCodec"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dlp_core.{home}"), name)
    raise AttributeError(f"module 'dlp_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
