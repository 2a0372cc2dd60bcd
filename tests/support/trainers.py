"""What trainers leave in an adapter's folder beside the adapter, with pickles that act when they are loaded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

TRAINER_FILES = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "checkpoint-500/",
    "merges.txt",
    "optimizer.pt",
    "pytorch_model.bin",
    "rng_state.pth",
    "runs/",
    "scaler.PT",
    "scheduler.pt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
    "vocab.json",
)


class Acts:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self._proof}'",)


def hostile_pickle(proof: Path) -> bytes:
    """A pickle that makes the file `proof` when it is loaded."""
    return pickle.dumps(Acts(proof))


def leave_trainer_files(folder: Path, proof: Path | None = None) -> Path:
    """Puts TRAINER_FILES beside an adapter; every pickle among them makes the file `proof` when it is loaded."""
    content = hostile_pickle(proof or folder / "never")
    for name in TRAINER_FILES:
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
            (path / "optimizer.pt").write_bytes(content)
        else:
            path.write_bytes(content)
    return folder
