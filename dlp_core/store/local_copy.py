"""Makes a location available as a local folder: the folder itself, or a copy of the objects under a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.errors import InvalidRequest, LocalDiskError, NotFound
from dlp_core.store.disk import disk_errors
from dlp_core.store.documents import MAX_DOCUMENT_BYTES, MAX_TENSORS_BYTES
from dlp_core.store.opening import is_uri, open_store
from dlp_core.store.protocol import CONTROL_CHARACTERS, AdapterStore, check_relative
from dlp_core.store.transfers import Progress, silent

MAX_JSON_BYTES = 64 << 20
"""Tokenizers of many languages take tens of megabytes. What reads a smaller document has a bound of its own."""

_READ = {
    "*.json": MAX_JSON_BYTES,
    "*.safetensors": MAX_TENSORS_BYTES,
    "description.txt": MAX_DOCUMENT_BYTES,
    "chat_template.jinja": MAX_DOCUMENT_BYTES,
}
"""Files to download, and how large they may be. Others are created empty: their name is enough to refuse or ignore
them."""

_OF_TRAINERS = ("trainer_state.json",)
"""Not read, and as long as the training."""


_CHECKPOINT = re.compile(r"checkpoint-\d+")


@contextmanager
def local_copy(location: str, *, progress: Progress = silent) -> Iterator[Path]:
    """A folder with the content of `location` for the duration of the block, named like the location's last part.

    Raises NotFound if there is nothing, InvalidRequest for a location that cannot be one, an object whose key leads out
    of it or one that is too large, StoreUnavailable if the store fails, LocalDiskError if the copy cannot be written.
    """
    if CONTROL_CHARACTERS.search(location):
        raise InvalidRequest(f"{location!r} is no location: it has control characters", param="folder")
    if not is_uri(location):
        folder = Path(location).expanduser().resolve()
        if not folder.is_dir():
            raise NotFound(f"there is no folder {location!r} on this machine", param="folder")
        yield folder
        return
    with TemporaryDirectory(prefix="dlp-copy-") as temporary:
        folder = Path(temporary, location.rstrip("/").rpartition("/")[2].lstrip(".") or "copy")
        with disk_errors(f"{location} cannot be copied to {temporary}", mistake=LocalDiskError):
            _download(open_store(location), folder, progress)
        yield folder


def _download(store: AdapterStore, folder: Path, progress: Progress) -> None:
    # everything is checked before anything is written
    objects = [info for info in store.list() if not _hidden(check_relative(info.key))]
    if not objects:
        raise NotFound(f"there is nothing at {store.uri}; check the location", param="folder")
    for info in objects:
        limit = _limit(info.key)
        if limit is not None and info.size > limit:
            raise InvalidRequest(f"{info.key!r} in {store.uri} has {info.size:,} bytes; at most {limit:,} are read")
    total, done = sum(info.size for info in objects), 0
    for info in objects:
        target = folder / info.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"" if _limit(info.key) is None else store.get(info.key).data)
        done += info.size
        progress(done, total)


def _limit(key: str) -> int | None:
    """How large an object may be; None if it is not downloaded: what a trainer's checkpoint holds may be a whole model,
    and is not served from here."""
    *folders, name = key.split("/")
    for parent, folder in pairwise(["", *folders]):
        if _CHECKPOINT.fullmatch(folder) and parent != "adapters":  # there, it is the name of an adapter
            return None
    limits = [limit for pattern, limit in _READ.items() if fnmatchcase(name, pattern) and name not in _OF_TRAINERS]
    return limits[0] if limits else None


def _hidden(key: str) -> bool:
    """Whether it is a tool's own file, such as .gitattributes."""
    return any(part.startswith(".") for part in key.split("/"))
