"""A base model in a store: pushed once, and pulled completely or not at all.

    <root>/<digest>/<file>    config.json, tokenizer files, *.safetensors, as Hugging Face saves them
    <root>/model.json         size and sha256 of every file; written last, never replaced

A readable model is therefore complete, and a location never changes its model: push another model, or another
version, to another location.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dlp_core.errors import Conflict, InvalidRequest, NotFound
from dlp_core.store.disk import disk_errors, sync
from dlp_core.store.files import Digest, FileEntry, describe_files, digest_of, put_unchanged, version_of
from dlp_core.store.hub import cached_repository
from dlp_core.store.lock import FileLock
from dlp_core.store.model_folder import MANIFEST, WEIGHTS, check_model_folder
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem
from dlp_core.store.transfers import Progress, in_parallel, silent

MAX_FILE_BYTES = 5 * 1024**3
"""S3's limit for one PUT."""

SUFFIXES = (WEIGHTS, ".json", ".jinja", ".model", ".txt")
"""The files a model is loaded from. Pickles, code and other weight formats are not uploaded."""

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class ModelManifest(Record):
    """The files of one model, by name. `name` is that of the folder it was pushed from."""

    format: Literal[1] = 1
    name: Annotated[str, StringConstraints(min_length=1)]
    files: tuple[FileEntry, ...] = Field(min_length=1)
    digest: Digest

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def prefix(self) -> str:
        """The key prefix of the files: their digest, so that two models never mix."""
        return f"{version_of(self.digest)}/"

    def key(self, file: FileEntry) -> str:
        return self.prefix + file.path

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        names = [file.path for file in self.files]
        if names != sorted(set(names)) or MANIFEST in names:
            raise ValueError(f"files must be sorted by name, without duplicates and without {MANIFEST}")
        for name in names:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{name!r} is not a plain file name")
        if self.digest != digest_of(self.files):
            raise ValueError("the digest does not match the files")
        return self


def push(store: AdapterStore, folder: Path, *, progress: Progress = silent) -> ModelManifest:
    """Upload the model in `folder` and return its manifest. Pushing again skips stored files, and so resumes.

    Raises InvalidRequest if `folder` is not a model folder or a file is too large for one PUT, Conflict if the
    location holds another model, StoreUnavailable if the store fails.
    """
    manifest = describe(folder)
    existing = _find(store)
    if existing is None:
        stored = {info.key: info.size for info in store.list(manifest.prefix)}

        def upload(file: FileEntry) -> int:
            key, path = manifest.key(file), folder / file.path
            if stored.get(key) != file.size and not put_unchanged(store, key, path, file):
                raise InvalidRequest(f"{path} changed while it was pushed; push when it is final")
            return file.size

        in_parallel(upload, manifest.files, lambda size: size, manifest.size, progress)
        with suppress(Conflict):  # a concurrent push; its manifest is read back
            store.put(MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n", if_none_match=True)
        existing = load(store)
    if existing.digest != manifest.digest:
        raise Conflict(f"{store.uri} holds another model ({existing.name}, {existing.digest}); choose another location")
    return existing


def pull(
    store: AdapterStore, folder: Path, *, weights: bool = True, progress: Progress = silent
) -> tuple[ModelManifest, bool]:
    """Download the model in the store to `folder`; return its manifest, and whether anything was fetched. Without
    `weights`, the other files alone, which say what layers and tokens it has.

    The folder appears complete, after every digest was verified. A folder that has the model already is left unchanged.
    Files from an interrupted call are reused; concurrent calls for one folder wait for each other.

    Raises NotFound if the store has no model, InvalidRequest if `folder` has other content or cannot be written,
    DiskFull or LocalDiskError if the disk fails, DigestMismatch if the store's bytes differ from those pushed,
    StoreUnavailable if the store fails.
    """
    manifest = load(store)
    wanted = [file for file in manifest.files if weights or not file.path.endswith(WEIGHTS)]
    if _holds(folder, manifest, wanted):
        return manifest, False
    partial = folder.with_name(f".{folder.name}.{version_of(manifest.digest)}.part")
    action = "it needs a writable folder around it, and cannot itself be a mount point"
    with disk_errors(f"{folder} cannot be written", action=action):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_suffix(".lock"), remove=True):
            if _holds(folder, manifest, wanted):  # fetched by another process while this one waited for the lock
                return manifest, False
            partial.mkdir(exist_ok=True)

            def fetch(file: FileEntry) -> int:
                target = partial / file.path
                if not target.is_file() or describe_files(partial, [file.path]) != (file,):
                    store.download(manifest.key(file), target, size=file.size, sha256=file.sha256)
                    sync(target)
                return file.size

            in_parallel(fetch, wanted, lambda size: size, sum(file.size for file in wanted), progress)
            (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.rename(folder)
    return manifest, True


def describe(folder: Path) -> ModelManifest:
    """The manifest of the model in a folder. Raises InvalidRequest, naming the file at fault."""
    check_model_folder(folder)
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.suffix in SUFFIXES and _FILE.fullmatch(path.name) and path.name != MANIFEST
    )
    if not any(name.endswith(WEIGHTS) for name in names):
        raise InvalidRequest(f"{folder} has no *{WEIGHTS} weights; save the model with safe_serialization=True")
    with disk_errors(f"{folder} cannot be read"):
        files = describe_files(folder, names)
    for file in files:
        if file.size > MAX_FILE_BYTES:
            raise InvalidRequest(
                f"{folder / file.path} has {file.size} bytes, above the {MAX_FILE_BYTES} of one upload; save the model "
                'in shards: save_pretrained(folder, max_shard_size="4GB")'
            )
    return ModelManifest(name=_name(folder), files=files, digest=digest_of(files))


def _name(folder: Path) -> str:
    """That of the folder; in the hub's cache, where folders are called by hashes, that of the model."""
    return (cached_repository(folder) or folder.resolve().name).rpartition("/")[2]


def load(store: AdapterStore) -> ModelManifest:
    """The manifest of the model in a store. Raises NotFound if there is none, InvalidRequest if it is damaged."""
    try:
        raw = store.get(MANIFEST).data
    except NotFound:
        raise NotFound(f"there is no model in {store.uri}; run: dlp model push FOLDER URI") from None
    try:
        return ModelManifest.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidRequest(
            f"{MANIFEST!r} in {store.uri} is damaged: {first_problem(error)}; push the model to another location"
        ) from None


def _find(store: AdapterStore) -> ModelManifest | None:
    """`load`, or None if there is no model yet."""
    try:
        return load(store)
    except NotFound:
        return None


def _holds(folder: Path, manifest: ModelManifest, wanted: Sequence[FileEntry]) -> bool:
    """Whether a folder has these files of this model, judging by the manifest it was pulled with and the file sizes.

    Raises InvalidRequest if it has other content, which is left unchanged.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    with suppress(OSError, ValidationError):
        pulled = ModelManifest.model_validate_json((folder / MANIFEST).read_bytes())
        sizes = [(folder / file.path).stat().st_size for file in wanted]
        if pulled.digest == manifest.digest and sizes == [file.size for file in wanted]:
            return True
    raise InvalidRequest(
        f"{folder} exists and is not the model {manifest.name} ({manifest.digest}); remove it or choose another"
    )
