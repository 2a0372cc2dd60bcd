"""What a model folder says of the model, before vLLM has loaded it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A model in a folder, and the dtype it is computed in ("bfloat16")."""

    folder: Path
    dtype: str
    vocabulary: int
    context: int
    """The longest sequence it was made for, in tokens."""
    eos: frozenset[int]
    """Tokens that end a completion."""

    @classmethod
    def of(cls, folder: Path, dtype: str) -> FrozenModel:
        config = AutoConfig.from_pretrained(folder).get_text_config()
        return cls(folder, dtype, int(config.vocab_size), int(config.max_position_embeddings), _eos(folder, config))


def _eos(folder: Path, config: Any) -> frozenset[int]:
    eos = config.eos_token_id
    if (folder / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(folder).eos_token_id or eos
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
