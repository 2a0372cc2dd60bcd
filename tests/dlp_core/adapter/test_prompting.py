"""What a trainer's folder says about prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlp_core.adapter.prompting import MAX_TEMPLATE, PROMPT_FILE, Prompting, read_prompting
from dlp_core.errors import AdapterRefused
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
VOCABULARY = tiny_tokenizer().get_vocab()


def write(folder: Path, file: str, content: object) -> None:
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_without_a_tokenizer_says_nothing(tmp_path: Path) -> None:
    assert read_prompting(tmp_path, "a") is None


def test_the_base_models_own_tokenizer_is_accepted(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    found = read_prompting(tmp_path, "a")
    assert found is not None
    assert found.chat_template == CHAT_TEMPLATE
    assert set(found.added_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    found.check("a", VOCABULARY)


def test_an_added_token_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|x|>", "<|y|>"])
    tokenizer.save_pretrained(tmp_path)
    found = read_prompting(tmp_path, "a")
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
    found = read_prompting(tmp_path, "a")
    assert found is not None
    assert (found.chat_template, found.added_tokens) == (template, added)


def test_a_bank_keeps_it_in_one_file(tmp_path: Path) -> None:
    found = Prompting("{{ 'é' }}", {"<|x|>": 5, "<|a|>": 7}, "<|x|>")
    (tmp_path / PROMPT_FILE).write_bytes(found.content)
    write(tmp_path, "chat_template.jinja", "not read")
    assert read_prompting(tmp_path, "a") == found


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", []),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer.json", {"added_tokens": [5]}),
        ("tokenizer.json", {"added_tokens": [{"id": "1", "content": "a"}]}),
        ("added_tokens.json", {"a": "b"}),
        ("chat_template.jinja", "x" * (MAX_TEMPLATE + 1)),
        (PROMPT_FILE, {"added_tokens": None}),
        (PROMPT_FILE, {"chat_template": [], "added_tokens": {}}),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, file: str, content: object) -> None:
    write(tmp_path, file, content)
    with pytest.raises(AdapterRefused, match="adapter 'a'"):
        read_prompting(tmp_path, "a")


def test_no_pipe_is_waited_for_and_no_link_followed_out_of_the_folder(tmp_path: Path) -> None:
    import os

    (tmp_path / "adapter").mkdir()
    os.mkfifo(tmp_path / "adapter/chat_template.jinja")
    with pytest.raises(AdapterRefused, match="not a regular file"):
        read_prompting(tmp_path / "adapter", "a")
    (tmp_path / "adapter/chat_template.jinja").unlink()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "adapter/chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterRefused, match="link"):
        read_prompting(tmp_path / "adapter", "a")
