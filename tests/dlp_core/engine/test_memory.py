"""How a device's memory is divided. What it has is measured on devices alone; the division is arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.loading import load
from dlp_core.engine.sizing import Memory, cache_bytes_per_token, sized_cache
from dlp_core.errors import InvalidRequest
from dlp_core.residency.sources import FolderSource
from examples.tiny.model import tiny_backbone
from tests.support.tiny import tiny_llama

GB = 10**9
DEVICE = Memory(total=80 * GB, free=62 * GB, workspace=2 * GB)
CONFIG = EngineConfig(memory_fraction=0.9, slot_bytes=6 * GB)


def test_the_cache_gets_what_the_others_leave() -> None:
    per_token = 131_072  # of Llama 3 8B
    tokens = sized_cache(CONFIG, DEVICE, per_token)
    assert tokens % CONFIG.page_tokens == 0
    room = (62 - 8 - 2 - 6) * GB
    assert room - 1 * GB < tokens * per_token < room
    more = sized_cache(EngineConfig(memory_fraction=0.95, slot_bytes=6 * GB), DEVICE, per_token)
    assert more * per_token == pytest.approx(tokens * per_token + 4 * GB, rel=0.01)


def test_a_device_that_is_too_small_is_told_by_its_parts() -> None:
    with pytest.raises(
        InvalidRequest, match=r"memory_fraction 0.9 leaves 8.0 GB alone.*slot_bytes takes 6.0 GB.*2.3 GB"
    ):
        sized_cache(CONFIG, Memory(total=80 * GB, free=16 * GB, workspace=2 * GB), 131_072)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_fraction": 0.0, "slot_bytes": GB}, "above 0 and at most 1"),
        ({"memory_fraction": 1.1, "slot_bytes": GB}, "above 0 and at most 1"),
        ({"memory_fraction": 0.9}, "needs slot_bytes"),
        ({"memory_fraction": 0.9, "slot_bytes": GB, "kind": "vllm"}, "vllm takes cache_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        EngineConfig(**settings)


@pytest.mark.model
def test_a_token_has_the_bytes_that_the_cache_gives_it() -> None:
    model = tiny_llama()
    config = model.config
    assert (
        cache_bytes_per_token(config, 4)
        == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    )


@pytest.mark.model
def test_weights_are_loaded_where_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in host memory first, which may be smaller than the model."""
    tiny_backbone(tmp_path)
    load_weights = AutoModelForCausalLM.from_pretrained
    found = []

    def loading(*args: Any, **settings: Any) -> Any:
        found.append(settings.get("device_map"))
        return load_weights(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loading)
    load(tmp_path, FolderSource({}), EngineConfig(slots=1), dtype="float32", device="cpu")
    assert found == ["cpu"]


def test_a_cpu_has_no_fraction(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="for CUDA devices"):
        load(tmp_path, FolderSource({}), CONFIG, dtype="float32", device="cpu")
