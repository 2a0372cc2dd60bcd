"""The digest of a base model's weights: the same for every copy of it, whatever its folder is called.

It is that of the weight files' sha256 and names (dlp_core.store.files.digest_of). A file is read once and remembered by
path, size and time of change. What a store or the Hugging Face hub fetched is not read at all: its digest is known.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from dlp_core.errors import InvalidRequest
from dlp_core.store.base_model import ModelManifest
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import FileEntry, digest_of
from dlp_core.store.hub import blob_digest, cached_repository, lfs_digests
from dlp_core.store.model_folder import MANIFEST, WEIGHTS, weight_names
from dlp_core.store.transfers import Progress, silent

MEMORY = Path("~/.cache/dlp/digests.json")
"""Digests of files that were read before."""

_REMEMBERED = 1000
_CHUNK = 16 << 20


def weights_digest(folder: Path, *, progress: Progress = silent) -> str | None:
    """`sha256:<hex>` of the weights of the model in a folder, None if they are not there and nobody knows it.

    `progress` counts the bytes that are read. Raises InvalidRequest or LocalDiskError if a file cannot be read.
    """
    if (pulled := _pulled(folder)) is not None:
        return _digest(pulled)
    names = weight_names(path.name for path in folder.glob(f"*{WEIGHTS}"))
    if not names:
        known = lfs_digests(folder) if cached_repository(folder) else {}
        return _digest({name: known[name] for name in weight_names(name for name in known if "/" not in name)})
    digests = {name: blob_digest(folder / name) for name in names}
    unknown = [folder / name for name, digest in digests.items() if digest is None]
    if unknown:
        with disk_errors(f"{folder}: the weights cannot be read"):
            read = _remembered(unknown, MEMORY.expanduser(), progress)
        digests |= {path.name: read[path] for path in unknown}
    return _digest({name: digest for name, digest in digests.items() if digest is not None})


def _digest(files: dict[str, str]) -> str | None:
    """The digest of files of these sha256."""
    if not files:
        return None
    return digest_of([FileEntry(path=name, size=0, sha256=sha256) for name, sha256 in files.items()])


def _pulled(folder: Path) -> dict[str, str] | None:
    """The sha256 of the weights that `pull` verified, None if it did not, or if they were changed since."""
    path = folder / MANIFEST
    try:
        manifest, written = ModelManifest.model_validate_json(path.read_bytes()), path.stat().st_mtime_ns
    except (OSError, ValidationError):
        return None
    files = {file.path: file for file in manifest.files}
    names = weight_names(files)
    for name in names:
        if (folder / name).exists():
            status = (folder / name).stat()
            if status.st_size != files[name].size or status.st_mtime_ns > written:
                return None
    return {name: files[name].sha256 for name in names}


def _remembered(paths: list[Path], memory: Path, progress: Progress) -> dict[Path, str]:
    known = _load(memory)
    stamps = {path: _stamp(path) for path in paths}
    missing = [path for path in paths if stamps[path] not in known]
    total, done = sum(path.stat().st_size for path in missing), 0
    for path in missing:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(done, total)
        if _stamp(path) != stamps[path]:
            raise InvalidRequest(f"{path} changed while it was read; wait until it is complete")
        known[stamps[path]] = digest.hexdigest()
    if missing:
        _save(memory, known)
    return {path: known[stamp] for path, stamp in stamps.items()}


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {path.resolve()}"


def _load(memory: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_bytes())
        if isinstance(known, dict):
            return {str(stamp): str(digest) for stamp, digest in known.items()}
    return {}


def _save(memory: Path, known: dict[str, str]) -> None:
    """Where that is not possible, as on a read-only disk, files are read again the next time."""
    partial = memory.with_name(f".{memory.name}.{os.getpid()}.part")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(list(known.items())[-_REMEMBERED:])), encoding="utf-8")
        partial.replace(memory)
