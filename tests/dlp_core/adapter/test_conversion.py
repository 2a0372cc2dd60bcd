"""Pickled weights become safetensors in a process of its own, and nothing else in a pickle is ever run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlp_core.adapter import conversion
from dlp_core.adapter.contents import CONFIG_FILE, PICKLED_WEIGHTS, WEIGHTS_FILE
from dlp_core.adapter.conversion import convert
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused, InvalidRequest
from tests.support.tiny import peft_adapter
from tests.support.trainers import Acts, hostile_pickle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as PEFT saved it before safetensors."""
    folder = peft_adapter(tmp_path / "sql", 1)
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLED_WEIGHTS)
    (folder / WEIGHTS_FILE).rename(tmp_path / "expected")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_what_was_converted_is_the_adapter(folder: Path, tmp_path: Path, zipped: bool) -> None:
    expected = load_file(tmp_path / "expected")
    torch.save(expected, folder / PICKLED_WEIGHTS, _use_new_zipfile_serialization=zipped)
    before = names(folder)
    adapter = convert(folder)
    assert names(folder) == before | {WEIGHTS_FILE}
    found = load_file(folder / WEIGHTS_FILE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert read_adapter(folder, name="sql").modules.keys() == adapter.modules.keys()


def test_tensors_that_share_memory_are_written_apart(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "expected")
    keys = [key for key in tensors if "q_proj.lora_A" in key]
    torch.save(tensors | {keys[1]: tensors[keys[0]]}, folder / PICKLED_WEIGHTS)
    convert(folder)
    found = load_file(folder / WEIGHTS_FILE)
    assert torch.equal(found[keys[1]], tensors[keys[0]])


def test_an_existing_file_is_only_replaced_when_asked(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"mine")
    with pytest.raises(InvalidRequest, match="exists; --yes replaces it"):
        convert(folder)
    assert (folder / WEIGHTS_FILE).read_bytes() == b"mine"
    convert(folder, replace=True)
    assert read_adapter(folder, name="sql").modules


def test_a_file_that_appears_meanwhile_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finds_another(*args: Any) -> None:
        unpickle(*args)
        (folder / WEIGHTS_FILE).write_bytes(b"mine")

    unpickle = conversion._unpickle
    monkeypatch.setattr(conversion, "_unpickle", finds_another)
    with pytest.raises(InvalidRequest, match="File exists"):
        convert(folder)
    assert (folder / WEIGHTS_FILE).read_bytes() == b"mine"


def acts(path: Path, proof: Path) -> None:
    torch.save({"x": Acts(proof)}, path)


def acts_before_torch_1_6(path: Path, proof: Path) -> None:
    torch.save({"x": Acts(proof)}, path, _use_new_zipfile_serialization=False)


def raw(path: Path, proof: Path) -> None:
    path.write_bytes(hostile_pickle(proof))


def large(path: Path, proof: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(8 * 10**8)}, path)  # 3.2 GB from a file of one kilobyte


HOSTILE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "runs code": (acts, "it asks for posix.system, which is not a tensor"),
    "runs code, before torch 1.6": (acts_before_torch_1_6, "which is not a tensor"),
    "a bare pickle": (raw, "not a complete file of tensors"),
    "a memory bomb": (large, "far more memory than the file has bytes"),
    "cut": (lambda path, proof: path.write_bytes(path.read_bytes()[:-300]), "not a complete file of tensors"),
    "no pickle": (lambda path, proof: path.write_bytes(b"junk"), "not a complete file of tensors"),
    "empty": (lambda path, proof: path.write_bytes(b""), "not a complete file of tensors"),
    "a list": (lambda path, proof: torch.save([torch.ones(1)], path), "no dictionary of tensors"),
    "a nested dictionary": (lambda path, proof: torch.save({"state": {}}, path), "'state' is not a tensor"),
    "no LoRA": (lambda path, proof: torch.save({"x": torch.ones(2)}, path), "is not a LoRA factor"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_pickle_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    make, says = HOSTILE[kind]
    make(folder / PICKLED_WEIGHTS, tmp_path / "proof")
    before = names(folder)
    with pytest.raises(AdapterRefused, match="adapter 'sql'") as caught:
        convert(folder)
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    assert names(folder) == before
    assert not (tmp_path / "proof").exists()


def test_the_pickle_would_have_acted(tmp_path: Path) -> None:
    acts(tmp_path / "x", tmp_path / "proof")
    torch.load(tmp_path / "x", weights_only=False)
    assert (tmp_path / "proof").exists()


def test_an_adapter_that_is_not_served_is_not_written(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text('{"peft_type": "IA3"}')
    with pytest.raises(AdapterRefused, match="IA3"):
        convert(folder)
    assert WEIGHTS_FILE not in names(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(AdapterRefused, match="adapter_config"):
        convert(folder)


def test_there_must_be_something_to_convert(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no .*/adapter_model\.bin to convert"):
        convert(tmp_path)


def test_a_pickle_that_takes_too_long_is_given_up(folder: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"was not read within 0\.01 s"):
        convert(folder, timeout_s=0.01)
