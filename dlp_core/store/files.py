"""File entries: name, size and sha256, and digests over several files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class FileEntry(Record):
    """One file of an adapter or router. `path` is a bare file name, `size` is in bytes."""

    path: str
    size: int = Field(ge=0)
    sha256: Sha256


def digest_of(files: Iterable[FileEntry]) -> str:
    """`sha256:<hex>` over the files' digests in `sha256sum` format, by path.

    In a folder that holds just these files, `sha256sum * | sha256sum` prints the same.
    """
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def version_of(digest: str) -> str:
    """The name that content gives itself: the first twelve digits of its digest."""
    return digest.removeprefix("sha256:")[:12]


def describe_bytes(path: str, content: bytes) -> FileEntry:
    """Size and sha256 of what was read from a file."""
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def describe_files(folder: Path, names: Sequence[str]) -> tuple[FileEntry, ...]:
    """Size and sha256 of each file, in the order of `names`."""
    entries = []
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append(FileEntry(path=name, size=file.tell(), sha256=digest))
    return tuple(entries)


def put_unchanged(store: AdapterStore, key: str, path: Path, entry: FileEntry) -> bool:
    """Uploads a file. False if it no longer is what `entry` says; then nothing is left at `key`."""
    store.put(key, path)
    if describe_files(path.parent, [path.name]) == (entry,):
        return True
    store.delete(key)
    return False
