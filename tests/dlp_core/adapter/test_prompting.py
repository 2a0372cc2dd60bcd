"""What a trainer's folder says about prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dlp_core.adapter.prompting import MAX_TEMPLATE, PROMPT_FILE, Prompting, read_prompting
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.layers import fits_model
from dlp_core.residency.sources import FolderSource, SpokenSource
from examples.tiny.model import CHAT_TEMPLATE, peft_model, tiny_backbone, tiny_tokenizer

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
VOCABULARY = tiny_tokenizer().get_vocab()


def write(folder: Path, file: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))


def test_a_folder_without_a_tokenizer_says_nothing(tmp_path: Path) -> None:
    assert read_prompting(tmp_path, "a") == (None, ())


def test_the_base_models_own_tokenizer_is_accepted(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    found, _ = read_prompting(tmp_path, "a")
    assert found is not None
    assert found.chat_template == CHAT_TEMPLATE
    assert set(found.added_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    found.check("a", VOCABULARY)


def test_an_added_token_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|x|>", "<|y|>"])
    tokenizer.save_pretrained(tmp_path)
    found, _ = read_prompting(tmp_path, "a")
    assert found is not None
    with pytest.raises(AdapterRefused, match=r"adapter 'a' adds '<\|x\|>' and 1 more"):
        found.check("a", VOCABULARY)
    found.check("a", tokenizer.get_vocab())


def test_a_token_under_another_id_is_another_token() -> None:
    found = Prompting(None, {"<|im_end|>": 7}, None)
    with pytest.raises(AdapterRefused, match="as token 7"):
        found.check("a", VOCABULARY)


def test_a_token_for_padding_is_in_no_prompt() -> None:
    Prompting(None, {"<|pad|>": 301}, "<|pad|>").check("a", VOCABULARY)


@pytest.mark.parametrize(
    ("files", "template", "added"),
    [
        ({"chat_template.jinja": "OTHER"}, "OTHER", {}),
        ({"tokenizer_config.json": {"chat_template": "OLD"}}, "OLD", {}),
        ({"chat_template.jinja": "NEW", "tokenizer_config.json": {"chat_template": "OLD"}}, "NEW", {}),
        (
            {"tokenizer_config.json": {"chat_template": NAMED}},
            "D",
            {},
        ),
        ({"added_tokens.json": {"<|x|>": 99999}}, None, {"<|x|>": 99999}),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"5": {"content": "<a>"}}}}, None, {"<a>": 5}),
        ({"tokenizer.json": {"added_tokens": [{"id": 5, "content": "<a>"}], "model": {}}}, None, {"<a>": 5}),
    ],
)
def test_it_is_found_where_trainers_put_it(
    tmp_path: Path, files: dict[str, object], template: str | None, added: dict[str, int]
) -> None:
    for file, content in files.items():
        write(tmp_path, file, content)
    found, _ = read_prompting(tmp_path, "a")
    assert found is not None
    assert (found.chat_template, found.added_tokens) == (template, added)


def test_a_bank_keeps_it_in_one_file(tmp_path: Path) -> None:
    found = Prompting("{{ 'é' }}", {"<|x|>": 5, "<|a|>": 7}, "<|x|>")
    (tmp_path / PROMPT_FILE).write_bytes(found.content)
    write(tmp_path, "chat_template.jinja", "not read")
    assert read_prompting(tmp_path, "a") == (found, ())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "\udcff"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", []),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer.json", {"added_tokens": [5]}),
        ("tokenizer.json", {"added_tokens": [{"id": "1", "content": "a"}]}),
        ("added_tokens.json", {"a": "b"}),
        ("chat_template.jinja", "x" * (MAX_TEMPLATE + 1)),
    ],
)
def test_what_is_no_tokenizer_is_named_and_passed_over(tmp_path: Path, file: str, content: object) -> None:
    write(tmp_path, file, content)
    found, notes = read_prompting(tmp_path, "a")
    assert found is None
    assert any(file in note and "base model's" in note for note in notes)


@pytest.mark.parametrize("content", ["{", [], {"added_tokens": None}, {"chat_template": [], "added_tokens": {}}])
def test_what_a_bank_keeps_must_be_whole(tmp_path: Path, content: object) -> None:
    write(tmp_path, PROMPT_FILE, content)
    with pytest.raises(AdapterRefused, match=r"adapter 'a': prompt\.json is damaged"):
        read_prompting(tmp_path, "a")


def test_no_pipe_is_waited_for_and_no_link_followed_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    os.mkfifo(tmp_path / "adapter/chat_template.jinja")
    (tmp_path / "secret").write_text('{"added_tokens": [{"id": 1, "content": "secret"}]}')
    (tmp_path / "adapter/tokenizer.json").symlink_to(tmp_path / "secret")
    found, notes = read_prompting(tmp_path / "adapter", "a")
    assert found is None
    assert ["not a regular file" in notes[0], "link" in notes[1]] == [True, True]


def test_an_adapter_with_foreign_tokens_fits_no_model_and_is_not_loaded(tmp_path: Path) -> None:
    base = tmp_path / "base"
    peft_model(tiny_backbone(base), 1).save_pretrained(tmp_path / "a")
    fits, source = fits_model(base), SpokenSource(FolderSource({"a": tmp_path / "a"}), VOCABULARY)
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    fits(source.load("a"))
    write(tmp_path / "a", "added_tokens.json", {"<|x|>": 99999})
    with pytest.raises(AdapterRefused, match="99999"):
        source.load("a")
    with pytest.raises(AdapterRefused, match="99999"):
        fits(read_adapter(tmp_path / "a", name="a"))
