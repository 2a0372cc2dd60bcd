"""The content of a router folder, and that a bad one is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlp_core.errors import BankError, InvalidRequest
from dlp_core.router import Router
from dlp_core.router.features import VERSION
from dlp_core.router.files import CONFIG_FILE, WEIGHTS_FILE
from tests.support.router_rows import make_rows, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained()[0].save(tmp_path / "router")
    return tmp_path / "router"


def test_a_loaded_router_routes_like_the_saved_one(folder: Path) -> None:
    texts = [row.input for row in make_rows(3, seed=5)]
    assert Router.load(folder).route(texts) == trained()[0].route(texts)


def test_the_folder_holds_two_files_of_at_most_6_mb(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert json.loads((folder / CONFIG_FILE).read_text())["labels"] == sorted({r.task for r in make_rows(1, seed=0)})


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())
        change(config)
        (folder / CONFIG_FILE).write_text(json.dumps(config))

    return damage


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)

    return damage


def _cut(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-100])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / CONFIG_FILE).unlink(), r"router\.json: cannot be read"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), r"router\.safetensors: cannot be read"),
    "not JSON": (lambda folder: (folder / CONFIG_FILE).write_text("{"), r"router\.json: not a router"),
    "a JSON list": (lambda folder: (folder / CONFIG_FILE).write_text("[1]"), r"router\.json: not a router"),
    "cut weights": (_cut, r"router\.safetensors: not a safetensors file"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04N."),
        r"router\.safetensors: not a safetensors file",
    ),
    "format of tomorrow": (_config(lambda c: c.update(format=4)), "format 4 .* reads format 3"),
    "features of tomorrow": (_config(lambda c: c.update(features=VERSION + 1)), f"features {VERSION + 1}"),
    "labels missing": (_config(lambda c: c.pop("labels")), "labels"),
    "a label too few": (_config(lambda c: c["labels"].pop()), "3 labels need"),
    "a label twice": (_config(lambda c: c["labels"].__setitem__(0, c["labels"][1])), "different adapter names"),
    "a label that is a path": (_config(lambda c: c["labels"].__setitem__(0, "../x")), r"\.\./x"),
    "no temperature": (_config(lambda c: c["calibration"].update(temperature=0)), "out of range"),
    "a top-p above 1": (_config(lambda c: c["calibration"].update(top_p=1.5)), "out of range"),
    "a curve that falls": (_config(lambda c: c["curve"]["known"].reverse()), "must ascend"),
    "no curve": (_config(lambda c: c.pop("curve")), "curve"),
    "pooling of tomorrow": (_config(lambda c: c.update(pooling="max")), "pooling 'max'"),
    "an encoder that is not there": (_config(lambda c: c.update(pooling="mean")), r"encoder.tokenizer\.json"),
    "threshold not finite": (_config(lambda c: c["calibration"].update(threshold=float("nan"))), "out of range"),
    "a tensor missing": (_tensors(lambda t: t.pop("layer1.bias")), r"layer1\.bias"),
    "a tensor too many": (_tensors(lambda t: t.update(extra=np.zeros(1, np.float32))), "extra"),
    "a small table": (
        _tensors(lambda t: t.update({"grams.values": t["grams.values"][:10].copy()})),
        r"grams\.values is int8 \[10, 32\]",
    ),
    "a flat layer": (
        _tensors(lambda t: t.update({"layer1.weight": t["layer1.weight"].reshape(-1)})),
        r"layer1\.weight",
    ),
    "a memory of no task": (
        _tensors(lambda t: t.update({"memory.tasks": t["memory.tasks"] + np.int16(9)})),
        "memory.tasks has tasks that are not among the 4 labels",
    ),
    "a memory without inputs": (
        _tensors(lambda t: t.update({"memory.inputs": t["memory.inputs"][:5].copy()})),
        r"memory\.inputs is float16 \[5, 72\]",
    ),
    "a vocabulary that is no tokenizer": (
        _tensors(lambda t: t.update({"vocabulary.tokenizer": np.frombuffer(b"{}", np.uint8)})),
        r"vocabulary\.tokenizer",
    ),
    "words beyond the vocabulary": (
        _tensors(lambda t: t.update({"vocabulary.words": t["vocabulary.words"] + np.int32(1 << 20)})),
        r"vocabulary\.words",
    ),
    "a table smaller than its vocabulary": (
        _tensors(lambda t: t.update({name: t[name][:10].copy() for name in ("pieces.values", "pieces.scales")})),
        "10 rows",
    ),
    "weights not finite": (
        _tensors(lambda t: t.update({"output.bias": t["output.bias"] * np.float32("nan")})),
        r"output\.bias has values that are not finite",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_folder_is_refused_by_name(folder: Path, bad: str) -> None:
    damage, message = BAD[bad]
    damage(folder)
    with pytest.raises(BankError, match=message) as refusal:
        Router.load(folder)
    assert str(folder) in refusal.value.message
    assert "train" in refusal.value.message


def test_an_unwritable_folder_is_an_invalid_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidRequest, match="the router cannot be written"):
        trained()[0].save(tmp_path / "file")
