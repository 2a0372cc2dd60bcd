"""What a model takes, and how a device is divided, from headers and a config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.model_size import model_size, read_header
from dlp_core.engine.sizing import DRIVER, GIB, MARGIN, adapter_bytes, cache_bytes_per_token, fit_device, pod_needs
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layers import read_shapes
from dlp_core.fusion.packed import pack
from dlp_core.fusion.reference import Delta
from tests.support.families import FAMILIES
from tests.support.model_folders import LLAMA_8B, write_header, write_llama

CONFIG = EngineConfig(memory_fraction=0.9, slot_bytes=1, batch_tokens=2048, max_requests=64)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Llama-3.1-8B"
    assert write_llama(folder, LLAMA_8B) == 16_060_522_496  # as the model's index says
    return folder


def test_numbers_of_a_known_model(llama: Path) -> None:
    size = model_size(llama, "bfloat16")
    assert size.weights == 16_060_522_496
    assert 0 < size.files - size.weights < 100_000, "headers"
    assert model_size(llama, "float32").weights == 2 * size.weights
    assert cache_bytes_per_token(size.config, 2) == 131_072
    assert (
        adapter_bytes(read_shapes(llama), 16, 128_256, "bfloat16") == 83_886_080
    )  # 41,943,040 parameters, as PEFT says


def test_the_parts_of_a_device_add_up(llama: Path) -> None:
    size = model_size(llama, "bfloat16")
    fit = fit_device(size, CONFIG, dtype="bfloat16", total=40 * GIB, adapter=84_000_000, slots=64, context=2048)
    assert fit.missing is None
    assert fit.workspace > MARGIN + DRIVER
    assert fit.slot_bytes > 64 * 84_000_000
    room = fit.total - fit.left_alone - fit.weights - fit.workspace - fit.slot_bytes
    assert 0 <= room - fit.cache_bytes < CONFIG.page_tokens * fit.bytes_per_token
    assert fit.requests == fit.cache_tokens // 2048 > 10
    longer = fit_device(size, CONFIG, dtype="bfloat16", total=40 * GIB, adapter=84_000_000, slots=64, context=8192)
    assert longer.requests == fit.cache_tokens // 8192


def test_a_model_that_does_not_fit_is_told_by_its_parts(llama: Path) -> None:
    size = model_size(llama, "bfloat16")
    fit = fit_device(size, CONFIG, dtype="bfloat16", total=16 * GIB, adapter=84_000_000, slots=None, context=2048)
    assert (fit.cache_tokens, fit.requests, fit.slots) == (0, 0, 1)
    assert "nothing is left for cached tokens" in str(fit.missing)


def test_a_pod_holds_pinned_and_shared_memory_and_its_volumes(llama: Path) -> None:
    size = model_size(llama, "bfloat16")
    pod = pod_needs(size, adapter=83_886_080, host_bytes=8 * GIB, disk_cache=20 * GIB)
    assert pod.host_adapters == 8 * GIB // 2**27, "torch takes a power of two for each"
    assert pod.memory >= pod.pinned + pod.shared + 4 * GIB
    assert pod.disk_cache == 24 * GIB
    assert pod.model > size.files
    assert pod.ephemeral_storage == pod.disk_cache + pod.model + 6 * GIB


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_of_a_model_is_what_it_takes(name: str, tmp_path: Path) -> None:
    """Also where a family calls its fields otherwise, or leaves them to their defaults."""
    model = FAMILIES[name].build()
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    size = model_size(tmp_path, "bfloat16")
    assert size.weights == 2 * sum(parameter.numel() for parameter in model.parameters())
    config = model.config.get_text_config()
    assert cache_bytes_per_token(size.config, 2) == cache_bytes_per_token(config, 2)


def test_an_adapter_is_counted_as_it_is_packed(tmp_path: Path) -> None:
    write_llama(tmp_path / "small", SMALL)
    layers = {path: shape for path, shape in read_shapes(tmp_path / "small").items() if path.endswith("_proj")}
    deltas = {
        path: Delta(LoRAWeights(torch.ones(5, shape.d_in), torch.ones(shape.d_out, 5), 1.0), None)
        for path, shape in layers.items()
    }
    packed = pack(deltas, {path: shape.d_in for path, shape in layers.items()}, dtype=torch.bfloat16, pinned=False)
    assert adapter_bytes(read_shapes(tmp_path / "small"), 5, 1000, "bfloat16") == packed.nbytes


# folders


def test_weights_that_are_not_here_are_known_by_a_manifest_or_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    size = write_llama(folder, SMALL)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert model_size(folder, "float32").weights == 2 * size
    files = [{"path": "config.json", "size": 5}, {"path": "model-1.safetensors", "size": 700}]
    (folder / "model.json").write_text(json.dumps({"files": files}))
    assert model_size(folder, "bfloat16").weights == 700
    (folder / "model.json").unlink()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InvalidRequest, match="sizes of the weights are not in"):
        model_size(folder, "bfloat16")


def test_quantised_weights_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    size = write_llama(folder, SMALL)
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(config | quantised))
    found = model_size(folder, "float32")
    assert (found.quantised, found.weights) == (True, size)


def test_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    size = write_llama(folder, SMALL)
    (folder / "model.safetensors.index.json").unlink()
    write_header(folder / "positions.safetensors", {"ids": (10,)}, dtype="I64", itemsize=8)
    assert model_size(folder, "float32").weights == 2 * size + 80


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 8,
        (10**12).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        b"\7" + b"\0" * 7 + b'{"a":1}',
    ],
    ids=["empty", "no header", "too long", "no object", "no tensor"],
)
def test_a_file_that_is_no_safetensors_is_named(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(InvalidRequest, match=r"model\.safetensors is not a readable safetensors file.*copy the model"):
        list(read_header(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("config", "message"),
    [('{"model_type": "none-such"}', "not the folder of a language model"), ("{", "cannot be read")],
)
def test_a_config_that_says_nothing_is_refused(config: str, message: str, tmp_path: Path) -> None:
    write_llama(tmp_path / "small", SMALL)
    (tmp_path / "small" / "config.json").write_text(config)
    with pytest.raises(InvalidRequest, match=message):
        model_size(tmp_path / "small", "bfloat16")


def test_only_known_dtypes(llama: Path) -> None:
    settings: Any = "int3"
    with pytest.raises(InvalidRequest, match="bfloat16, float16, float32"):
        model_size(llama, settings)
