"""What an adapter's folder holds: the two files that are served, and what trainers leave beside them.

Nothing but names is read here. A pickle is never opened: loading one can run code.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
"""What PEFT before 0.6 wrote, and still does with `safe_serialization=False`."""

FILES = (CONFIG_FILE, WEIGHTS_FILE)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FOLDERS = ("*", "snapshots/*")
"""Where trainers, PEFT (an adapter with a name) and the hub's cache put the files of an adapter."""


def left_out(folder: Path, served: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """What a folder holds beside the files that are served: names, folders with a slash, no hidden ones."""
    names = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}
    others = (name for name in names if name not in served and not name.startswith("."))
    return tuple(sorted(name if name.isprintable() else repr(name) for name in others))


def elsewhere(folder: Path) -> str:
    """Where in a folder that lacks a file of the adapter there is one, as the end of a message; empty if nowhere."""
    folders = [path for pattern in _FOLDERS for path in folder.glob(pattern) if _complete(path)]
    if not folders:
        return ""
    checkpoints = [path for path in folders if _CHECKPOINT.fullmatch(path.name)]
    if checkpoints:
        newest = max(checkpoints, key=_step)
        return (
            f"; {newest.relative_to(folder)} is the newest of its checkpoints that have both files: "
            "give that folder, or copy its two files here"
        )
    names = ", ".join(sorted(str(path.relative_to(folder)) for path in folders)[:3])
    return f"; there is an adapter in its folder {names}: give that folder, or copy its two files here"


def convert_hint(folder: Path) -> str:
    """What to do where there are only pickled weights, as the end of a message; empty if there are none."""
    pickle = folder / PICKLED_WEIGHTS
    if not pickle.is_file():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".pt", ".pth", ".ckpt"))
        return f"; {others[0]} is a pickle and is never opened, save the adapter as safetensors" if others else ""
    reason = f"; {PICKLED_WEIGHTS} is a pickle and is never opened, because loading one can run code"
    if not pickle.stat().st_size:  # in a copy from a store, which leaves out what is not served
        return f"{reason}; copy the folder here and run: dlp adapter convert FOLDER"
    return f"{reason}; run: dlp adapter convert {shlex.quote(str(folder))}"


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _step(checkpoint: Path) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1
