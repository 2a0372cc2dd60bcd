"""What can be known before Ray starts, which takes half a minute: each mistake of a user is one line at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from deployments.args import AppArgs
from deployments.http.access import open_access
from dlp_core.engine.model_size import INDEX, loaded_bytes, read_header, read_object, weight_files
from dlp_core.errors import InvalidRequest
from dlp_core.store.model_folder import CONFIG_FILE, WEIGHTS, check_model_folder

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_secrets(args: AppArgs) -> None:
    """Raise InvalidRequest, without a secret, if the ingress could not use the files of keys."""
    open_access(args.access)


def check_base_model(folder: Path) -> None:
    """Raise InvalidRequest, naming what is missing, if no replica could load the model in a folder."""
    if not folder.is_dir():
        raise InvalidRequest(f"there is no folder {folder}, which args.base_model names")
    check_model_folder(folder)
    weights = weight_files(folder)
    if not weights:
        raise InvalidRequest(f"{folder} has no *{WEIGHTS} weights; save the model with save_pretrained")
    if missing := [path.name for path in weights if not path.is_file()]:
        raise InvalidRequest(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists; copy the model again")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InvalidRequest(f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}); save it beside the model")


def check_memory(folder: Path, dtype: str, free: int) -> None:
    """Raise InvalidRequest if a model's weights take more than the `free` bytes that there are. What they are
    stored in is read from their files; quantised ones are not judged."""
    if "quantization_config" in read_object(folder / CONFIG_FILE):
        return
    needed = sum(loaded_bytes(tensor, dtype) for path in weight_files(folder) for tensor in read_header(path))
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
