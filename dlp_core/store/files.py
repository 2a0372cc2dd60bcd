"""Files with the size and sha256 they are promised to have: described, streamed to disk, checked on the way."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from dlp_core.errors import DigestMismatch
from dlp_core.store.records import Record

CHUNK_BYTES = 1024 * 1024


def save_stream(chunks: Iterable[bytes], target: Path, *, source: str, size: int, sha256: str) -> None:
    """Writes `chunks` to `target` through a temporary file beside it, checking size and digest on the way.

    Whether the bytes survive a power loss is the caller's business: see `sync`. Raises DigestMismatch, naming
    `source`; then, as after any error, no file is left behind.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, received = hashlib.sha256(), 0
    try:
        with partial.open("xb") as file:
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    raise DigestMismatch(
                        f"{source} is longer than the {size} bytes its manifest promises; publish it again"
                    )
                digest.update(chunk)
                file.write(chunk)
            if received != size or digest.hexdigest() != sha256:
                raise DigestMismatch(
                    f"{source}: expected sha256 {sha256} ({size} bytes), found {digest.hexdigest()} "
                    f"({received} bytes); delete the object and publish it again"
                )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or the renames in a folder, would survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def describe_files(folder: Path, names: Sequence[str]) -> tuple[FileEntry, ...]:
    """Size and sha256 of each file, in the order of `names`."""
    entries = []
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append(FileEntry(path=name, size=file.tell(), sha256=digest))
    return tuple(entries)
