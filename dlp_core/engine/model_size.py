"""What the model in a folder takes, from its config.json and the headers of its weights. No weights are read.

The weights need not be there: a folder that was pulled without them has their sizes in its manifest, and an index of
shards has their sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dlp_core.errors import InvalidRequest
from dlp_core.store.model_folder import CONFIG_FILE, MANIFEST, WEIGHTS, check_model_folder, weight_names

INDEX = f"model{WEIGHTS}.index.json"
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Of a number, by the dtype that a model is loaded in."""

_FLOATS = ("F", "BF")
_MAX_HEADER_BYTES = 100_000_000
"""What the safetensors format allows."""


class Tensor(NamedTuple):
    """A tensor of a weight file: its dtype as the file says it ("BF16"), and its bytes there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes of a model, and the numbers of its config that sizes follow from."""

    config: Any
    """Of the text model, as transformers has it."""
    files: int
    """Bytes of its weights on disk."""
    weights: int
    """Bytes of its weights in the dtype they are loaded in; those of a quantised model as they are stored."""
    quantised: bool


def model_size(folder: Path, dtype: str) -> ModelSize:
    """What the model in `folder` takes in `dtype`, a key of BYTES.

    Raises InvalidRequest for another dtype, and, naming what is missing or damaged, if the sizes are not in the folder.
    """
    if dtype not in BYTES:
        raise InvalidRequest(f"unknown dtype {dtype!r}; choose from: {', '.join(BYTES)}")
    check_model_folder(folder)
    stored = read_object(folder / CONFIG_FILE)
    quantised = "quantization_config" in stored
    paths = weight_files(folder)
    if paths and all(path.is_file() for path in paths):
        tensors = [tensor for path in paths for tensor in read_header(path)]
        files = sum(path.stat().st_size for path in paths)
        weights = sum(t.nbytes if quantised else loaded_bytes(t, dtype) for t in tensors)
        return ModelSize(read_config(folder), files, weights, quantised)
    files = _listed_bytes(folder)
    kept = stored.get("dtype") or stored.get("torch_dtype") or (stored.get("text_config") or {}).get("dtype")
    weights = files if quantised else files * BYTES[dtype] // BYTES.get(str(kept), BYTES[dtype])
    return ModelSize(read_config(folder), files, weights, quantised)


def read_config(folder: Path) -> Any:
    """The config of the text model in a folder. Raises InvalidRequest if transformers knows no such model."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{folder} is not the folder of a language model: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, there or not. Raises InvalidRequest for a damaged index."""
    index = folder / INDEX
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict):
            raise InvalidRequest(f"{index} has no weight_map; copy the model again")
        return sorted({folder / Path(str(name)).name for name in names.values()})
    return [folder / name for name in weight_names(path.name for path in folder.glob(f"*{WEIGHTS}"))]


def read_header(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file. Raises InvalidRequest if it is none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(_MAX_HEADER_BYTES, path.stat().st_size):
                raise ValueError("it has no header")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield Tensor(name, str(entry["dtype"]), tuple(entry["shape"]), int(end) - int(start))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"{path} is not a readable safetensors file: {error}; copy the model again") from None


def loaded_bytes(tensor: Tensor, dtype: str) -> int:
    """What a tensor takes once it is loaded: floats become `dtype`, whole numbers stay what they are."""
    if not tensor.dtype.startswith(_FLOATS):
        return tensor.nbytes
    elements = 1
    for length in tensor.shape:
        elements *= length
    return elements * BYTES[dtype]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. Raises InvalidRequest if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}; copy the model again") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} is not a JSON object; copy the model again")
    return found


def _listed_bytes(folder: Path) -> int:
    """The bytes of weights that are not in the folder, as its manifest or its index lists them."""
    with suppress(InvalidRequest):
        files = read_object(folder / MANIFEST).get("files")
        sizes = {str(file["path"]): int(file["size"]) for file in files} if isinstance(files, list) else {}
        if names := weight_names(sizes):
            return sum(sizes[name] for name in names)
    if (folder / INDEX).is_file():
        total = read_object(folder / INDEX).get("metadata", {}).get("total_size")
        if isinstance(total, int | float) and total > 0:
            return int(total)
    raise InvalidRequest(
        f"the sizes of the weights are not in {folder}: it has no *{WEIGHTS}, no {MANIFEST} and no {INDEX} with "
        "metadata.total_size; fetch the model with its weights and name the folder"
    )
