"""Every field of PEFT's LoraConfig is served, harmless or refused with what to do: a new one fails here first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.adapter.fields import HARMLESS, REFUSED, SERVED, refusal
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused
from tests.support.tiny import peft_adapter

OLD = {"enable_lora", "merge_weights"}
"""Fields that PEFT no longer has."""


def test_every_field_of_pefts_config_is_classified_once() -> None:
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    classified = [*SERVED, *HARMLESS, *REFUSED]
    assert len(classified) == len(set(classified))
    assert set(classified) == fields | OLD


def test_the_runtime_config_still_only_says_where_initialisation_runs() -> None:
    from peft.tuners.lora.config import LoraRuntimeConfig

    assert [field.name for field in dataclasses.fields(LoraRuntimeConfig)] == ["ephemeral_gpu_offload"]


def test_every_variant_of_pefts_config_is_refused_but_two() -> None:
    """VeLoRA alone only changes the backward pass, and activated LoRA is served (test_invocation.py)."""
    from peft import LoraConfig

    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants - set(REFUSED) == {"velora_config", "alora_invocation_tokens"}


def test_what_cannot_change_the_forward_pass_is_served(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "sql", 1)
    before = read_adapter(folder, name="sql")
    config = json.loads((folder / CONFIG_FILE).read_text())
    values: dict[str, Any] = {field: {"ephemeral_gpu_offload": True} for field in HARMLESS}
    (folder / CONFIG_FILE).write_text(json.dumps(config | values | {"merge_weights": True, "enable_lora": None}))
    after = read_adapter(folder, name="sql")
    for path, weights in before.modules.items():
        assert after.modules[path].scaling == weights.scaling
        assert after.modules[path].a_RD.equal(weights.a_RD)


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_changes_it_is_refused_with_what_to_do(field: str) -> None:
    for value in (True, [1], {"x": 1}, {}):
        reason = refusal({"r": 8, field: value})
        assert reason is not None
        assert field in reason
        assert REFUSED[field] in reason
    assert refusal({field: None}) is refusal({field: False}) is refusal({field: []}) is None


def test_an_unknown_field_is_refused_as_soon_as_it_is_set() -> None:
    assert refusal({"some_future_variant": None}) is None
    assert refusal({"some_future_variant": 1}) == (
        "uses some_future_variant, which is not served: retrain it as plain LoRA"
    )


@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], "lm_head", ["score"] * 9])
def test_full_copies_of_modules_say_what_to_do(tmp_path: Path, modules: Any) -> None:
    """The tensors do not matter: where they are missing, what training changed is lost."""
    folder = peft_adapter(tmp_path / "sql", 1)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"modules_to_save": modules}))
    with pytest.raises(AdapterRefused) as caught:
        read_adapter(folder, name="sql")
    for part in ("'sql' uses modules_to_save", str(modules[-1] if isinstance(modules, list) else modules)):
        assert part in caught.value.message
    for action in ("target_modules", "merge_and_unload", "a base model of its own"):
        assert action in caught.value.message
    assert len(caught.value.message) < 450
