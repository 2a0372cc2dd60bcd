"""What can be known before Ray starts, which takes half a minute: each mistake of a user is one line at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil

from deployments.args import AppArgs
from deployments.http.access import open_access
from dlp_core.errors import InvalidRequest
from dlp_core.store.base_model import CONFIG_FILE, WEIGHTS, check_model_folder

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def check_secrets(args: AppArgs) -> None:
    """Raise InvalidRequest, without a secret, if the ingress could not use the files of keys."""
    open_access(args.access)


def check_base_model(folder: Path) -> None:
    """Raise InvalidRequest, naming what is missing, if no replica could load the model in a folder."""
    if not folder.is_dir():
        raise InvalidRequest(f"there is no folder {folder}, which args.base_model names")
    check_model_folder(folder)
    weights = _weights(folder)
    if not weights:
        raise InvalidRequest(f"{folder} has no *{WEIGHTS} weights; save the model with save_pretrained")
    if missing := [path.name for path in weights if not path.is_file()]:
        raise InvalidRequest(f"{folder} lacks {', '.join(missing)}, which {_INDEX} lists; copy the model again")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InvalidRequest(f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}); save it beside the model")


def check_memory(folder: Path, dtype: str, free: int) -> None:
    """Raise InvalidRequest if a model's weights take more than the `free` bytes that there are. What they are stored in
    is read from config.json; unknown is taken for what they are loaded in."""
    stored = _object(folder / CONFIG_FILE)
    kept = _BYTES.get(str(stored.get("dtype") or stored.get("torch_dtype")), _BYTES[dtype])
    if "quantization_config" in stored:
        return
    needed = sum(path.stat().st_size for path in _weights(folder)) * _BYTES[dtype] // kept
    if needed > free:
        raise InvalidRequest(
            f"the weights in {folder} take {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of memory are "
            "free; take a machine with more, or a smaller model"
        )


def free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def uses_gpu(config: dict[str, Any]) -> bool:
    """Whether a deployment of this Serve config asks for a GPU."""
    deployments = config["applications"][0].get("deployments", [])
    return any(one.get("ray_actor_options", {}).get("num_gpus") for one in deployments)


def _weights(folder: Path) -> list[Path]:
    """The files that hold the weights, there or not."""
    index = folder / _INDEX
    if index.is_file():
        names = _object(index).get("weight_map")
        if not isinstance(names, dict):
            raise InvalidRequest(f"{index} has no weight_map; copy the model again")
        return sorted({folder / Path(str(name)).name for name in names.values()})
    return sorted(folder.glob(f"*{WEIGHTS}"))


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}; copy the model again") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} is not a JSON object; copy the model again")
    return found
