"""Seals a folder of verified files, so that they are hashed once and not at every use.

    seal.json   {"boot": "<id>", "files": {"adapter_config.json": {"size": 812, "mtime_ns": 1795673315915539000}, ...}}

A later write to a file changes its time and so breaks the seal. So does a reboot: files are not synced (fsync), so a
power loss may have damaged them.
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
"""Sealed files get times this far in the past. A file system's clock ticks every few milliseconds to two seconds: a
write in the same tick as the check would not change the time."""


def _boot() -> str:
    """An id that changes at every boot. Linux only; elsewhere seals never expire."""
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
    """Record that the bytes of `files` were verified. No other process may write to the folder meanwhile."""
    past = time.time_ns() - _AGE_NS
    for file in files:
        os.utime(folder / file.path, ns=(past, past))
    sealed = _Seal(boot=_BOOT, files=_stat_files(folder, files))
    (folder / SEAL_FILE).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")


def is_intact(folder: Path, files: Sequence[FileEntry]) -> bool:
    """Whether all files are unchanged since they were sealed during this boot. Does not read them."""
    try:
        sealed = _Seal.model_validate_json((folder / SEAL_FILE).read_bytes())
        return sealed == _Seal(boot=_BOOT, files=_stat_files(folder, files))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return False


def reseal(folder: Path, files: Sequence[FileEntry]) -> bool:
    """Hash the files and seal them if all match `files`. Returns whether they match."""
    try:
        entries = describe_files(folder, [file.path for file in files])
    except (FileNotFoundError, NotADirectoryError):
        return False
    if entries != tuple(files):
        return False
    seal(folder, files)
    return True


def _stat_files(folder: Path, files: Sequence[FileEntry]) -> dict[str, _File]:
    stats = {file.path: (folder / file.path).stat() for file in files}
    return {path: _File(size=stat.st_size, mtime_ns=stat.st_mtime_ns) for path, stat in stats.items()}
