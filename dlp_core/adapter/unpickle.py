"""Writes the tensors of a pickle as safetensors. A process of its own, which dlp_core.adapter.conversion starts:

    python -I unpickle.py PICKLE SAFETENSORS

Only tensors are loaded (`weights_only`): a pickle that calls anything else is not run but refused. The limits are for
what a hostile pickle may still do, which is to ask for memory. Exit 0, or 1 with the reason in one line on stdout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

SPARE_BYTES = 2 << 30
"""For Python and torch, beside the tensors."""


class Unfit(Exception):
    """What was loaded are not the weights of an adapter; the message says why."""


def main(pickle: Path, target: Path) -> int:
    import torch
    from safetensors.torch import save_file

    _limit(pickle.stat().st_size)
    try:
        tensors = _tensors(_load(torch, pickle), torch.Tensor)
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, target, {"format": "pt"})
    except Exception as error:  # whatever a hostile file makes of it
        print(_reason(error))
        return 1
    return 0


def _load(torch: Any, pickle: Path) -> Any:
    try:
        return torch.load(pickle, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(pickle, map_location="cpu", weights_only=True)  # of torch before 1.6


def _tensors(loaded: Any, kind: type) -> dict[str, Any]:
    if not isinstance(loaded, dict) or not loaded:
        raise Unfit("it holds no dictionary of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, kind):
            raise Unfit(f"{str(name)[:80]!r} is not a tensor with a name")
    return loaded


def _limit(size: int) -> None:
    if sys.platform == "win32":  # which has no such limits
        return
    import resource

    def lower(what: int, limit: int) -> None:
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))

    used = Path("/proc/self/statm")
    if used.exists():  # Linux
        pages = int(used.read_text(encoding="ascii").split()[0])
        lower(resource.RLIMIT_AS, pages * resource.getpagesize() + 4 * size + SPARE_BYTES)
    lower(resource.RLIMIT_FSIZE, 4 * size + (1 << 20))
    lower(resource.RLIMIT_CORE, 0)


def _reason(error: Exception) -> str:
    """One line of our own: torch's are a page, with advice to load the file without protection."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return f"it asks for {asked[1]}, which is not a tensor"
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "its tensors take far more memory than the file has bytes"
    if isinstance(error, Unfit):
        return str(error)
    return f"it is not a complete file of tensors that torch.save wrote ({type(error).__name__})"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
