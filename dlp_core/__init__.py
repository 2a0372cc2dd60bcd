"""Exact fusion of weighted LoRA adapters, and all that serving a bank of them takes. See docs/library.md.

The names below are the public surface. Each is imported when it is first asked for: `import dlp_core.mix` needs no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlp_core.adapter.checks import check_base, check_fits
    from dlp_core.adapter.weights import Adapter, LoRAWeights, read_adapter
    from dlp_core.engine.config import EngineConfig
    from dlp_core.engine.engine import FusedEngine
    from dlp_core.engine.request import Plan, Sampling, TokenEvent, TokenLogprob
    from dlp_core.errors import DLPError
    from dlp_core.fusion.layers import Fusion, install
    from dlp_core.fusion.segments import Segment
    from dlp_core.generation.generator import Generator
    from dlp_core.generation.messages import Completion, Delta, Finished
    from dlp_core.generation.sentence_mixes import SentenceMixes
    from dlp_core.mix import EMPTY_MIX, Mix, Span, select_top_p
    from dlp_core.residency.movement import Residency
    from dlp_core.residency.sources import AdapterSource, FolderSource
    from dlp_core.router import Router, Routing
    from dlp_core.text.chat import Message
    from dlp_core.text.codec import Prompt, TextCodec

__all__ = [
    "Adapter",
    "AdapterSource",
    "Completion",
    "Delta",
    "DLPError",
    "EMPTY_MIX",
    "EngineConfig",
    "Finished",
    "FolderSource",
    "FusedEngine",
    "Fusion",
    "Generator",
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
    "adapter.checks": ("check_base", "check_fits"),
    "adapter.weights": ("Adapter", "LoRAWeights", "read_adapter"),
    "engine.config": ("EngineConfig",),
    "engine.engine": ("FusedEngine",),
    "engine.request": ("Plan", "Sampling", "TokenEvent", "TokenLogprob"),
    "errors": ("DLPError",),
    "fusion.layers": ("Fusion", "install"),
    "fusion.segments": ("Segment",),
    "generation.generator": ("Generator",),
    "generation.messages": ("Completion", "Delta", "Finished"),
    "generation.sentence_mixes": ("SentenceMixes",),
    "mix": ("EMPTY_MIX", "Mix", "Span", "select_top_p"),
    "residency.movement": ("Residency",),
    "residency.sources": ("AdapterSource", "FolderSource"),
    "router": ("Router", "Routing"),
    "text.chat": ("Message",),
    "text.codec": ("Prompt", "TextCodec"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dlp_core.{home}"), name)
    raise AttributeError(f"module 'dlp_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
