"""What a base model's files are called."""

from __future__ import annotations

from dlp_core.store.model_folder import weight_names


def test_which_files_are_loaded() -> None:
    shards = ["model-1.safetensors", "model-2.safetensors"]
    assert weight_names(["config.json", *reversed(shards), "consolidated.safetensors"]) == shards
    assert weight_names([*shards, "model.safetensors", "model.bin"]) == ["model.safetensors"]
