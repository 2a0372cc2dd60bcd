"""A folder of a base model as Hugging Face has them, for tests of what is moved of it."""

from __future__ import annotations

from pathlib import Path

MOVED = {
    "config.json",
    "tokenizer.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}
"""The files that make up the model."""


def write_model(folder: Path, weights: bytes = b"w" * 300_000) -> Path:
    """What a Hugging Face folder looks like, with what must stay at home."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model"):
        (folder / name).write_text(f"{name}\n")
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
    (folder / "model-00002-of-00002.safetensors").write_bytes(weights[::2])
    for name in ("pytorch_model.bin", "modeling.py", ".hidden.json"):
        (folder / name).write_text("stays at home")
    (folder / "onnx").mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
