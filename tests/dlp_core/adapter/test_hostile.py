"""Adapters that were made to hurt: each is refused with a reason, quickly, and nothing else comes out."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dlp_core.adapter import patterns
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.patterns import MAX_CHARACTERS, Patterns
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused
from dlp_core.store.documents import MAX_DOCUMENT_BYTES, parse_json, parse_yaml
from tests.support.tiny import peft_adapter

NESTED = "[" * 200_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return peft_adapter(tmp_path / "sql", seed=1)


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterRefused, match="adapter 'sql'") as caught:
        read_adapter(folder, name="sql")
    return caught.value.message


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def scale(folder: Path, factor: str, by: float) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({key: value * by if factor in key else value for key, value in tensors.items()}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "pattern",
    [
        "(.|.)*[X!]",
        "((.|.)*)*[^.a-z_0-9]",
        "(x|.|..|...)*[XY]",
        "(",
        r"(.+)\6",
        "a{1,4294967296}{1,4294967296}",
        "(" * 20_000 + ")" * 20_000,
        "a" * (MAX_CHARACTERS + 1),
    ],
)
def test_a_pattern_that_cannot_be_matched_is_refused_by_name(
    folder: Path, field: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MATCHING_SECONDS", 0.1)
    edit(folder, **{field: {pattern: 4}})
    assert pattern[:20] in refusal(folder).replace("\\\\", "\\")


@pytest.mark.parametrize("pattern", ["(.+)+X", "([a-z0-9._]+)+X", "(.*)*(.*)*(.*)*X", "(?i)q_PROJX", "a{1,4294967296}"])
def test_a_pattern_that_looks_bad_and_matches_nothing_does_no_harm(folder: Path, pattern: str) -> None:
    before = {path: weights.scaling for path, weights in read_adapter(folder, name="sql").modules.items()}
    edit(folder, alpha_pattern={pattern: 4}, rank_pattern={pattern: 4})
    after = _read_or_refuse(folder)
    assert after is None or {path: weights.scaling for path, weights in after.modules.items()} == before


def test_a_pattern_is_matched_as_peft_does_it() -> None:
    known = Patterns({"layers.1.self_attn.v_proj": 7, "v_proj": 11, ".*q_pro[j]": 3}, 5)
    found = [known.value(f"model.layers.{path}") for path in ("1.self_attn.v_proj", "0.v_proj", "0.q_proj", "0.x")]
    assert found == [7, 11, 3, 5]
    assert Patterns({"proj": 7}, 5).value("model.v_proj") == 5  # only whole parts of a path


@pytest.mark.parametrize(
    ("factor", "by"), [("lora_A", 1e30), ("lora_B", 1e30), ("lora_A", 1e38), ("lora_", 1e4), ("lora_B", float("inf"))]
)
def test_factors_that_overflow_are_refused(folder: Path, factor: str, by: float) -> None:
    scale(folder, factor, by)
    assert "overflow" in refusal(folder) or "NaN or infinity" in refusal(folder)


@pytest.mark.parametrize("alpha", [1e308, -1e30, int("9" * 401), "16", True, None, [], {}, float("nan")])
def test_an_alpha_that_is_no_sensible_number_is_refused(folder: Path, alpha: Any) -> None:
    edit(folder, lora_alpha=alpha)
    assert len(refusal(folder)) < 300


def test_what_float16_cannot_hold_is_refused_where_it_is_served(folder: Path) -> None:
    from dlp_core.fusion.cpu import CpuOp
    from dlp_core.fusion.layers import install
    from tests.support.tiny import tiny_llama

    scale(folder, "lora_B", 1e-6)
    tensors = load_file(folder / WEIGHTS_FILE)
    next(value for key, value in tensors.items() if "lora_A" in key)[0, 0] = 1e5
    save_file(tensors, folder / WEIGHTS_FILE)
    adapter = read_adapter(folder, name="sql")
    install(tiny_llama()).pack(adapter)
    with pytest.raises(AdapterRefused, match=r"'sql': model\.layers\.0.* beyond torch\.float16"):
        install(tiny_llama(dtype=torch.float16), CpuOp(torch.float16)).pack(adapter)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_model_name_or_path": 7},
        {"base_model_name_or_path": ["a"]},
        {"bias": []},
        {"bias": {}},
        {"r": "8"},
        {"r": 10**400},
        {"r": []},
        {"rank_pattern": [1]},
        {"alpha_pattern": "x"},
        {"init_lora_weights": {"pissa": 1}, "peft_type": ["LORA"]},
    ],
)
def test_fields_of_another_type_are_refused(folder: Path, fields: dict[str, Any]) -> None:
    edit(folder, **fields)
    assert len(refusal(folder)) < 400


@pytest.mark.parametrize("text", [NESTED, '{"a":' * 100_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe{"])
def test_a_config_that_is_no_json_is_refused(folder: Path, text: str | bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "cannot be read as JSON" in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_only_regular_files_of_the_folder_are_read(folder: Path, name: str, tmp_path: Path) -> None:
    content = (folder / name).read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)
    for make, reason in (
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(tmp_path / "elsewhere"), "leads out of its folder"),
        (lambda path: path.symlink_to("/dev/zero"), "leads out of its folder"),
        (lambda path: path.mkdir(), ""),
    ):
        path = folder / name
        path.unlink()
        make(path)
        assert reason in refusal(folder)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(content)
    (folder / "inside").write_bytes(content)
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    assert read_adapter(folder, name="sql").modules


def test_a_file_is_not_read_beyond_its_limit(folder: Path) -> None:
    with (folder / CONFIG_FILE).open("r+b") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    assert "at most 1,048,576 are read" in refusal(folder)
    with (folder / CONFIG_FILE).open("r+b") as file:
        file.truncate(0)
    refusal(folder)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "key: 2024-13-45", "a: *b", "? [", "!!python/x 1", "\0"])
def test_documents_raise_one_kind_of_error(parse: Any, text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    "alpha_pattern auto_mapping base_model_name_or_path bias init_lora_weights lora_alpha peft_type r rank_pattern "
    "target_modules use_rslora use_dora modules_to_save velora_config".split()
)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_adapter(tmp_path_factory.mktemp("fuzz") / "sql", seed=1)


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_any_config_is_read_or_refused(shared_folder: Path, fields: dict[str, Any]) -> None:
    path = shared_folder / CONFIG_FILE
    original = path.read_text()
    try:
        edit(shared_folder, **fields)
        _read_or_refuse(shared_folder)
    finally:
        path.write_text(original)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_any_damage_to_the_weights_is_read_or_refused(shared_folder: Path, at: int, junk: bytes, cut: bool) -> None:
    path = shared_folder / WEIGHTS_FILE
    original = path.read_bytes()
    at %= len(original)
    try:
        path.write_bytes(original[:at] + junk + (b"" if cut else original[at + len(junk) :]))
        _read_or_refuse(shared_folder)
    finally:
        path.write_bytes(original)


def _read_or_refuse(folder: Path) -> Adapter | None:
    """The adapter, or None where it is refused. Nothing else may be raised."""
    with suppress(AdapterRefused):
        return read_adapter(folder, name="sql")
    return None
