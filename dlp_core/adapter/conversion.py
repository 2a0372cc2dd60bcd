"""Converts the pickled weights of an adapter to safetensors, once and beside the serving path.

The pickle is read by another process (unpickle.py), which loads nothing but tensors. What it writes is checked as any
adapter is, and only then gets its name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.adapter import unpickle
from dlp_core.adapter.contents import CONFIG_FILE, PICKLED_WEIGHTS, WEIGHTS_FILE, elsewhere
from dlp_core.adapter.hub_cache import link_root
from dlp_core.adapter.names import validate_name
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.store.disk import disk_errors
from dlp_core.store.documents import read_regular

TIMEOUT_S = 600.0


def convert(folder: Path, *, replace: bool = False, timeout_s: float = TIMEOUT_S) -> Adapter:
    """Write adapter_model.safetensors from adapter_model.bin in a PEFT folder, and return the adapter. An existing file
    is only replaced with `replace`.

    Raises InvalidRequest if there is nothing to convert or the result exists, AdapterRefused if the pickle holds more
    than tensors, or an adapter that cannot be served.
    """
    folder = folder.expanduser()
    name, source, target = validate_name(folder.resolve().name), folder / PICKLED_WEIGHTS, folder / WEIGHTS_FILE
    if not source.is_file():
        raise InvalidRequest(f"there is no {source} to convert{elsewhere(folder)}")
    if target.exists() and not replace:
        raise InvalidRequest(f"{target} exists; --yes replaces it")
    with disk_errors(f"{folder} cannot be written"), TemporaryDirectory(prefix=".dlp-convert-", dir=folder) as work:
        converted = Path(work, WEIGHTS_FILE)
        _unpickle(name, source, converted, timeout_s)
        with disk_errors(f"adapter {name!r}: {CONFIG_FILE} cannot be read", mistake=AdapterRefused):
            Path(work, CONFIG_FILE).write_bytes(read_regular(folder / CONFIG_FILE, inside=link_root(folder)))
        adapter = read_adapter(Path(work), name=name)
        if not replace:
            target.touch(exist_ok=False)  # it may have appeared meanwhile
        converted.replace(target)
    return adapter


def _unpickle(name: str, source: Path, target: Path, timeout_s: float) -> None:
    command = [sys.executable, "-I", unpickle.__file__, str(source.resolve()), str(target.resolve())]
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "LD_LIBRARY_PATH", "TMPDIR")}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment | {"OMP_NUM_THREADS": "1"},
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AdapterRefused(f"adapter {name!r}: {source} was not read within {timeout_s:g} s") from None
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {done.returncode}"
        raise AdapterRefused(
            f"adapter {name!r}: {source.name} cannot be converted: {reason}; save the adapter again with PEFT, whose "
            "save_pretrained writes safetensors"
        )
