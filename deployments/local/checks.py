"""What can be known before Ray starts, which takes half a minute: each mistake of a user is one line at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deployments.args import AppArgs
from deployments.http.access import Access
from dlp_core.adapter.base_names import Naming, folder_name
from dlp_core.bank.manifest import BankManifest
from dlp_core.errors import InvalidRequest
from dlp_core.store.base_model import WEIGHTS, check_model_folder

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def check_secrets(args: AppArgs) -> None:
    """Raise InvalidRequest, without a secret, if the ingress could not use the files of keys."""
    Access(admin_token_file=args.access.admin_token_file, keys_file=args.access.keys_file)


def check_base_model(folder: Path) -> None:
    """Raise InvalidRequest, naming what is missing, if no replica could load the model in a folder."""
    if not folder.is_dir():
        raise InvalidRequest(f"there is no folder {folder}; --base-model names the folder of the base model")
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
    stored = json.loads((folder / "config.json").read_bytes())
    kept = _BYTES.get(str(stored.get("dtype") or stored.get("torch_dtype")), _BYTES[dtype])
    if "quantization_config" in stored:
        return
    needed = sum(path.stat().st_size for path in _weights(folder)) * _BYTES[dtype] // kept
    if needed > free:
        raise InvalidRequest(
            f"the weights in {folder} take {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of memory are "
            "free; take a machine with more, or a smaller model"
        )


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping, as the kernel estimates it; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def name_warning(folder: Path, manifest: BankManifest) -> str | None:
    """What to tell a user whose folder is called after another model than the bank's adapters were trained on."""
    name = folder_name(folder)
    if manifest.base_model.names.naming(name) is not Naming.OTHER:
        return None
    return (
        f"{folder} is called {name}, and the bank is for {manifest.base_model.id}; adapters of another model answer "
        "nonsense. If it is the same model, add the name to `aliases` in bank.json"
    )


def uses_gpu(config: dict[str, Any]) -> bool:
    """Whether a deployment of this Serve config asks for a GPU."""
    deployments = config["applications"][0].get("deployments", [])
    return any(one.get("ray_actor_options", {}).get("num_gpus") for one in deployments)


def _weights(folder: Path) -> list[Path]:
    """The files that hold the weights, there or not."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequest(f"{index} cannot be read; copy the model again") from None
        return sorted(folder / os.path.basename(name) for name in names)
    return sorted(folder.glob(f"*{WEIGHTS}"))
