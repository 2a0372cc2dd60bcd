"""An encoder that an owner brings: what it computes, what is stored of it, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from dlp_core.errors import BankError, InvalidRequest
from dlp_core.router.sentence_encoder import FILES, SentenceEncoder
from tests.support.encoders import write_encoder

pytestmark = pytest.mark.model

TEXTS = ["pay my bill", "book a flight to oslo, please", "what is the weather like in oslo today", "bill"]


@cache
def folder(pooling: str | None = "pooling_mode_mean_tokens") -> Path:
    return write_encoder(Path(mkdtemp()) / "encoder", TEXTS, pooling=pooling)


@pytest.mark.parametrize(
    "pooling", [None, "pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_lasttoken"]
)
def test_a_text_is_encoded_as_its_pooling_says(pooling: str | None) -> None:
    encoder = SentenceEncoder.load(folder(pooling))
    model, tokenizer = AutoModel.from_pretrained(folder(pooling)), AutoTokenizer.from_pretrained(folder(pooling))
    for text, encoded in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        with torch.inference_mode():
            hidden = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        index = {"pooling_mode_cls_token": 0, "pooling_mode_lasttoken": -1}.get(str(pooling))
        pooled = hidden.mean(dim=0) if index is None else hidden[index]
        np.testing.assert_allclose(encoded, pooled / pooled.norm(), atol=1e-5)


def test_text_without_a_visible_character_is_zero() -> None:
    encoded = SentenceEncoder.load(folder()).encode(["", " \n", "bill"])
    assert not encoded[:2].any()
    assert np.linalg.norm(encoded[2]) == pytest.approx(1.0, abs=1e-5)


def test_half_of_an_emoji_is_read_as_any_unknown_character() -> None:
    encoder = SentenceEncoder.load(folder())
    np.testing.assert_array_equal(encoder.encode(["pay \ud83d bill"]), encoder.encode(["pay ? bill"]))


def test_what_is_saved_encodes_the_same_and_is_all_there_is(tmp_path: Path) -> None:
    encoder = SentenceEncoder.load(folder())
    encoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    opened = SentenceEncoder.open(tmp_path, encoder.pooling)
    assert np.array_equal(opened.encode(TEXTS), encoder.encode(TEXTS))
    assert opened.digest() == encoder.digest()
    opened.save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_long_texts_are_cut(tmp_path: Path) -> None:
    encoder = SentenceEncoder.load(write_encoder(tmp_path / "short", TEXTS, max_tokens=8))
    assert np.array_equal(encoder.encode(["bill " * 50]), encoder.encode(["bill " * 5_000]))


def test_pieces_are_encoded_alone() -> None:
    encoder = SentenceEncoder.load(folder())
    index = encoder.tokenizer.get_vocab()["bill"]
    alone = encoder.encode_pieces([index])[0]
    np.testing.assert_allclose(alone / np.linalg.norm(alone), encoder.encode(["bill"])[0], atol=1e-5)


def _damage(path: Path, name: str, content: bytes | None) -> Path:
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{}", "not an encoder"),
        ("model.safetensors", None, "not an encoder"),
        ("model.safetensors", b"x", "not an encoder"),
        ("1_Pooling/config.json", b'{"pooling_mode_max_tokens": true}', "pools by pooling_mode_max_tokens"),
        ("1_Pooling/config.json", b"{", "cannot be read"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = _damage(write_encoder(tmp_path / "bad", TEXTS), name, content)
    with pytest.raises(InvalidRequest, match=message) as refusal:
        SentenceEncoder.load(path)
    assert str(path) in refusal.value.message


def test_a_damaged_stored_encoder_is_a_bank_error(tmp_path: Path) -> None:
    SentenceEncoder.load(folder()).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps([]))
    with pytest.raises(BankError, match=r"tokenizer\.json.*train the router again"):
        SentenceEncoder.open(tmp_path, "mean")
