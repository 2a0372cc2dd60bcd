"""Activated adapters as PEFT saves them: read, checked against the model, found in prompts where PEFT finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.adapter.examination import judge
from dlp_core.adapter.invocation import MAX_TOKENS, NEVER, begins_at
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.layers import fits_model
from dlp_core.residency.sources import FolderSource
from examples.tiny.model import peft_model, tiny_backbone, tiny_model, tiny_tokenizer
from tests.support.tiny import peft_adapter, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return peft_adapter(tmp_path / "sql", 1, alora_invocation_tokens=[5, 6, 5], task_type="CAUSAL_LM")


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_adapter_as_peft_saves_it_has_its_invocation(folder: Path) -> None:
    adapter = read_adapter(folder, name="sql")
    assert adapter.invocation == (5, 6, 5)
    _, verdict = judge(adapter, folder, base=None, check=None)
    assert "last occurrence of the tokens 5, 6, 5" in verdict.notes[0]
    source = FolderSource({"sql": folder})
    assert source.invocation("sql") == (5, 6, 5)
    edit(folder, alora_invocation_tokens=[])
    assert source.invocation("sql") is read_adapter(folder, name="sql").invocation is None, "PEFT's plain LoRA"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"alora_invocation_tokens": ["a"]}, "list of token ids"),
        ({"alora_invocation_tokens": [True]}, "list of token ids"),
        ({"alora_invocation_tokens": "user"}, "list of token ids"),
        ({"alora_invocation_tokens": [-1]}, "list of token ids"),
        ({"alora_invocation_tokens": [1] * (MAX_TOKENS + 1)}, "1,025 tokens"),
        ({"bias": "lora_only"}, "bias='none'"),
        ({"task_type": None}, "task_type='CAUSAL_LM'"),
    ],
)
def test_what_peft_would_not_compute_so_is_refused_by_name(folder: Path, fields: dict[str, Any], reason: str) -> None:
    edit(folder, **fields)
    with pytest.raises(AdapterRefused, match="'sql'") as caught:
        read_adapter(folder, name="sql")
    assert "alora_invocation_tokens" in caught.value.message
    assert reason in caught.value.message


def test_an_activated_embedding_is_refused_as_peft_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alora_invocation_tokens"):
        peft_model(tiny_llama(), 1, alora_invocation_tokens=[5], target_modules=["embed_tokens"])
    folder = tmp_path / "sql"
    peft_model(tiny_llama(), 1, target_modules=["embed_tokens"]).save_pretrained(folder, save_embedding_layers=True)
    edit(folder, alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    with pytest.raises(AdapterRefused, match=r"'sql' is activated .* embedding 'model.embed_tokens'"):
        read_adapter(folder, name="sql")


@pytest.mark.model
def test_tokens_that_no_prompt_can_have_are_refused(tmp_path: Path) -> None:
    tiny_backbone(tmp_path / "base")
    check = fits_model(tmp_path / "base")
    last = len(tiny_tokenizer()) - 1
    for tokens, fits in (([5, last], True), ([5, last + 1], False)):
        folder = tmp_path / f"sql{fits}"
        peft_model(tiny_model(), 1, alora_invocation_tokens=tokens, task_type="CAUSAL_LM").save_pretrained(folder)
        adapter = read_adapter(folder, name="sql")
        if fits:
            assert check(adapter).invocation == (5, last)
        else:
            with pytest.raises(AdapterRefused, match=rf"token {last + 1}, .* no prompt could invoke it"):
                check(adapter)


SMALL = st.lists(st.integers(0, 2), max_size=12)


@given(ids=SMALL.filter(bool), invocation=SMALL.filter(lambda tokens: 0 < len(tokens) < 5))
def test_it_begins_where_pefts_own_code_says(ids: list[int], invocation: list[int]) -> None:
    from peft import LoraConfig
    from peft.tuners.lora.variants import calculate_alora_offsets

    config = LoraConfig(alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
    [offset] = calculate_alora_offsets({"a": config}, "a", torch.tensor([ids]))
    assert begins_at(ids, tuple(invocation)) == (NEVER if offset is None else len(ids) - offset)
