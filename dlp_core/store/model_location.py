"""Where a base model is, in the ways people name it, and its folder on this machine.

path/to/folder                      as it is
s3://, gs:// or az://bucket/prefix/ fetched to MODELS, every file by its digest (dlp_core.store.base_model)
org/name, hf://org/name@revision    the Hugging Face hub, through its cache
"""

from __future__ import annotations

import re
from pathlib import Path

from dlp_core.errors import InvalidRequest
from dlp_core.store.base_model import SUFFIXES, load, pull
from dlp_core.store.files import version_of
from dlp_core.store.hub import HUB, snapshot
from dlp_core.store.model_folder import CONFIG_FILE, MANIFEST, WEIGHTS
from dlp_core.store.opening import LOCATIONS, is_uri, open_store
from dlp_core.store.transfers import Progress, silent

MODELS = Path("~/.cache/dlp/models")
"""Base models from stores, each in a folder of its digest. A model that is no longer served may be deleted."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")
_NOT_LOADED = ("*/*", "consolidated*")
"""Of a repository: other formats in folders, and the same weights as their maker's own code reads them."""


def locate(location: str, *, weights: bool = True, progress: Progress = silent) -> Path:
    """The folder of a base model on this machine. Without `weights`, they need not be there.

    A folder is returned as it is, even if no model is in it. `progress` counts bytes that are fetched. Raises
    InvalidRequest if nothing of that name can be a model, and what `pull` and `snapshot` raise.
    """
    folder = Path(location).expanduser()
    if location.startswith(HUB):
        return _of_hub(location.removeprefix(HUB), weights=weights, progress=progress)
    if is_uri(location) or ((folder / MANIFEST).is_file() and not (folder / CONFIG_FILE).is_file()):
        return _of_store(location, weights=weights, progress=progress)
    if folder.is_dir():
        return folder
    if _HUB_ID.fullmatch(location) and not Path(location).parent.exists():
        return _of_hub(location, weights=weights, progress=progress)
    raise InvalidRequest(f"there is no folder {location}; a base model is {LOCATIONS}")


def _of_store(uri: str, *, weights: bool, progress: Progress) -> Path:
    store = open_store(uri)
    manifest = load(store)
    if "/" in manifest.name or manifest.name in (".", ".."):
        raise InvalidRequest(f"{MANIFEST!r} in {store.uri} is damaged: {manifest.name!r} cannot be a folder's name")
    version = version_of(manifest.digest)
    models = MODELS.expanduser()
    complete, partial = models / version / manifest.name, models / f"{version}-config" / manifest.name
    folder = complete if weights or complete.is_dir() else partial
    pull(store, folder, weights=folder == complete, progress=progress)
    return folder


def _of_hub(repository: str, *, weights: bool, progress: Progress) -> Path:
    ignore = _NOT_LOADED if weights else (*_NOT_LOADED, f"*{WEIGHTS}")
    folder = snapshot(repository, allow=[f"*{suffix}" for suffix in SUFFIXES], ignore=ignore, progress=progress)
    if not (folder / CONFIG_FILE).is_file():
        raise InvalidRequest(f"{HUB}{repository} is not a model: it has no {CONFIG_FILE}")
    if weights and not any(folder.glob(f"*{WEIGHTS}")):
        raise InvalidRequest(f"{HUB}{repository} has no *{WEIGHTS} weights; save the model with save_pretrained")
    return folder
