"""What lies at a location, as a folder on this machine: a folder itself, or the objects under an S3 prefix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.errors import LocalDiskError, NotFound
from dlp_core.store.disk import disk_errors
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import Progress, silent

_READ = (".json", ".safetensors")
"""What is downloaded. Of any other file the name says enough: it is refused, or ignored."""


@contextmanager
def local_copy(location: str, *, progress: Progress = silent) -> Iterator[Path]:
    """A folder with what is at `location`, for the length of the block; named like the last part of the location.

    Raises NotFound if there is nothing, StoreUnavailable if the store fails, LocalDiskError if the copy cannot be
    written.
    """
    if "://" not in location:
        folder = Path(location).expanduser().resolve()
        if not folder.is_dir():
            raise NotFound(f"there is no folder {location!r} on this machine", param="folder")
        yield folder
        return
    with TemporaryDirectory(prefix="dlp-copy-") as temporary:
        folder = Path(temporary, location.rstrip("/").rpartition("/")[2] or "copy")
        with disk_errors(f"{location} cannot be copied to {temporary}", mistake=LocalDiskError):
            _download(open_store(location), folder, progress)
        yield folder


def _download(store: AdapterStore, folder: Path, progress: Progress) -> None:
    found = store.list()
    if not found:
        raise NotFound(f"there is nothing at {store.uri}; check the location", param="folder")
    total, done = sum(info.size for info in found), 0
    for info in found:
        target = folder / info.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.get(info.key).data if info.key.endswith(_READ) else b"")
        done += info.size
        progress(done, total)
