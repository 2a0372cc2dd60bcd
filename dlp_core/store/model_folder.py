"""A base model's folder, as Hugging Face saves it: what its files are called, and which of them are its weights.

Nothing but the standard library is imported here: what measures a model on a bare machine imports it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dlp_core.errors import InvalidRequest

CONFIG_FILE = "config.json"
WEIGHTS = ".safetensors"
MANIFEST = "model.json"
"""What a pulled model's folder has, too: the sizes and sha256 of its files (dlp_core.store.base_model)."""

_SINGLE = f"model{WEIGHTS}"


def check_model_folder(folder: Path) -> None:
    """Raises InvalidRequest if there is no model in a folder."""
    if not (folder / CONFIG_FILE).is_file():
        raise InvalidRequest(f"{folder} is not a model folder: it has no {CONFIG_FILE}")


def weight_names(names: Iterable[str]) -> list[str]:
    """Of a model's files, those that its weights are loaded from."""
    found = sorted(name for name in names if name.endswith(WEIGHTS) and not name.startswith("consolidated"))
    return [_SINGLE] if _SINGLE in found else found
