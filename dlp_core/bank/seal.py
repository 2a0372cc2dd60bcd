"""The seal of a folder of checked files, so that their bytes are hashed once and not each time they are used.

    seal.json   {"boot": "<id>", "files": {"adapter_config.json": {"size": 812, "mtime_ns": 1795673315915539000}, ...}}

Whoever writes to a file later changes its time and so breaks the seal. So does a start of the machine: nobody waits
for the disk (fsync), and what a power loss took from a file has to be found out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from dlp_core.store.files import FileEntry, describe_files
from dlp_core.store.records import Record

SEAL_FILE = "seal.json"

_AGE_NS = 10 * 10**9
"""Sealed files are made to look this old. A file system's clock has ticks, of milliseconds and up to two seconds: a
write in the tick of the check would leave the time as it was."""


def _boot() -> str:
    """What is the same until the machine starts again. Only Linux tells; elsewhere seals are good for ever."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_BOOT = _boot()


class _File(Record):
    size: int
    mtime_ns: int


class _Seal(Record):
    boot: str
    files: dict[str, _File]


def seal(folder: Path, files: Sequence[FileEntry]) -> None:
    """Notes that the bytes of `files` were checked. Nobody else may write to the folder meanwhile."""
    then = time.time_ns() - _AGE_NS
    for file in files:
        os.utime(folder / file.path, ns=(then, then))
    sealed = _Seal(boot=_BOOT, files=_look(folder, files))
    (folder / SEAL_FILE).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")


def is_intact(folder: Path, files: Sequence[FileEntry]) -> bool:
    """Whether all files are as they were when they were sealed, since the machine started. Reads none of them."""
    try:
        sealed = _Seal.model_validate_json((folder / SEAL_FILE).read_bytes())
        return sealed == _Seal(boot=_BOOT, files=_look(folder, files))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return False


def reseal(folder: Path, files: Sequence[FileEntry]) -> bool:
    """Hashes the files and, if all have the right bytes, seals them. Whether they have."""
    try:
        found = describe_files(folder, [file.path for file in files])
    except (FileNotFoundError, NotADirectoryError):
        return False
    if found != tuple(files):
        return False
    seal(folder, files)
    return True


def _look(folder: Path, files: Sequence[FileEntry]) -> dict[str, _File]:
    stats = {file.path: (folder / file.path).stat() for file in files}
    return {path: _File(size=stat.st_size, mtime_ns=stat.st_mtime_ns) for path, stat in stats.items()}
