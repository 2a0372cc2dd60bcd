"""Repositories of the Hugging Face hub, through its cache on this machine. Its errors are mapped here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlp_core.errors import DLPError, InvalidRequest, NotFound, StoreUnavailable
from dlp_core.store.disk import disk_error
from dlp_core.store.transfers import Progress, silent

HUB = "hf://"
"""What an address in the hub begins with: hf://org/name, and maybe @revision."""

_LFS_DIGITS = 64


def snapshot(repository: str, *, allow: Sequence[str], ignore: Sequence[str] = (), progress: Progress = silent) -> Path:
    """The files of `org/name` or `org/name@revision` whose names match `allow` and not `ignore`, in the hub's cache.
    What is not there yet is downloaded, unless HF_HUB_OFFLINE is set. `progress` counts bytes.

    Raises InvalidRequest for what is no repository's name, NotFound for one that is not there or not for this user,
    StoreUnavailable if the hub does not answer and the cache does not have it, LocalDiskError or DiskFull if the cache
    cannot be written.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(allow),
                ignore_patterns=list(ignore),
                tqdm_class=_reporting(progress),
            )
        )
    except Exception as error:
        raise _mapped(error, repository) from error


def lfs_digests(folder: Path) -> dict[str, str]:
    """The sha256 of each large file of the snapshot in `folder`, by name, as the hub has it: also of files that are not
    downloaded. Empty for a folder that is no snapshot, and if the hub does not answer."""
    from huggingface_hub import HfApi

    cached = cached_repository(folder)
    if cached is None:
        return {}
    try:
        info = HfApi().model_info(cached, revision=folder.resolve().name, files_metadata=True)
    except Exception as error:
        _mapped(error, cached)  # raises what is none of the hub's errors
        return {}
    return {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}


def cached_repository(folder: Path) -> str | None:
    """The repository that `folder` is a snapshot of, None if it is none."""
    path = folder.resolve()
    marked = path.parent.parent.name
    if path.parent.name != "snapshots" or not marked.startswith("models--"):
        return None
    return marked.removeprefix("models--").replace("--", "/")


def blob_digest(path: Path) -> str | None:
    """The sha256 of a large file in the hub's cache, whose links lead to files called by it; None for another file."""
    blob = path.resolve()
    digits = blob.name if blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--") else ""
    return digits if len(digits) == _LFS_DIGITS and not set(digits) - set("0123456789abcdef") else None


def _mapped(error: Exception, repository: str) -> DLPError:
    """What an error of the hub's client means. Raises it again if it is none."""
    from huggingface_hub import constants, errors

    where, reason = f"{HUB}{repository}", str(error).strip().partition("\n")[0].strip()
    login = "log in with `hf auth login`, or set HF_TOKEN"
    kind: type[DLPError] = NotFound
    if isinstance(error, errors.HFValidationError):
        kind, message = InvalidRequest, f"{where}: {reason}"
    elif isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository.partition('@')[0]}"
        message = f"{where} is gated: accept its terms on {page}, then {login}"
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"{where}: the repository has no such revision"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = f"{where}: there is no such repository, or it is private; check the name, or {login}"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        kind, message = (
            StoreUnavailable,
            (
                f"{where}: {why}, and the hub's cache on this machine ({constants.HF_HUB_CACHE}) does not have "
                "all of it; go online, or name a folder"
            ),
        )
    elif isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        message = f"{where}: the hub refuses access ({error.response.status_code}); {login}"
    elif isinstance(error, errors.HfHubHTTPError):
        kind, message = StoreUnavailable, f"{where}: the hub answers {error.response.status_code}; try again later"
    elif isinstance(error, errors.HTTPError):  # type: ignore[attr-defined] # of its HTTP client, whichever that is
        kind, message = StoreUnavailable, f"{where}: the hub does not answer ({reason}); try again"
    elif isinstance(error, OSError):
        return disk_error(error, f"{where}: the hub's cache ({constants.HF_HUB_CACHE}) cannot be used")
    else:
        raise error
    return kind(message)


def _reporting(progress: Progress) -> type[Any]:
    """A progress bar of the hub's kind that shows nothing and reports bytes."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            self._bytes = settings.get("unit") == "B"
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._bytes and self.total:
                progress(min(int(self.n), int(self.total)), int(self.total))

    return Bar
