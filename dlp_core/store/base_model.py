"""A base model in a store: a folder goes there once, and comes back complete or not at all.

    <root>/<digest>/<file>    config.json, tokenizer files, *.safetensors, as Hugging Face saves them
    <root>/model.json         size and sha256 of every file; written last, never replaced

So a model that can be read is complete, and a location always holds the same model: another model, or another
version of it, goes to another location.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dlp_core.errors import Conflict, InvalidRequest, NotFound
from dlp_core.store.disk import disk_errors, sync
from dlp_core.store.files import Digest, FileEntry, describe_files, digest_of, version_of
from dlp_core.store.lock import FileLock
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record, first_problem
from dlp_core.store.transfers import Progress, in_parallel, put_unchanged, silent

MANIFEST = "model.json"
CONFIG_FILE = "config.json"
WEIGHTS = ".safetensors"

MAX_FILE_BYTES = 5 * 1024**3
"""The most S3 takes in one put."""

_SUFFIXES = (WEIGHTS, ".json", ".jinja", ".model", ".txt")
"""What a model is loaded from. Pickles, code and other formats of the weights stay at home."""

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class ModelManifest(Record):
    """The files of one model, by name. `name` is what the folder was called that it was pushed from."""

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
        """Where the files lie in the store: under their digest, so that two models never mix."""
        return f"{version_of(self.digest)}/"

    def key(self, file: FileEntry) -> str:
        return self.prefix + file.path

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [file.path for file in self.files]
        if names != sorted(set(names)) or MANIFEST in names:
            raise ValueError(f"files must be in order of their names, each once, without {MANIFEST}")
        for name in names:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{name!r} is not a plain file name")
        if self.digest != digest_of(self.files):
            raise ValueError("digest is not that of the files")
        return self


def push(store: AdapterStore, folder: Path, *, progress: Progress = silent) -> ModelManifest:
    """Uploads the model in `folder` and returns its manifest. Pushing again skips what is stored, and resumes.

    Raises InvalidRequest for a folder that is no model or a file too large for one put, Conflict if the location holds
    another model, StoreUnavailable if the store fails.
    """
    manifest = describe(folder)
    there = _find(store)
    if there is None:
        stored = {info.key: info.size for info in store.list(manifest.prefix)}

        def upload(file: FileEntry) -> int:
            key, path = manifest.key(file), folder / file.path
            if stored.get(key) != file.size and not put_unchanged(store, key, path, file):
                raise InvalidRequest(f"{path} changed while it was pushed; push when it is final")
            return file.size

        in_parallel(upload, manifest.files, lambda size: size, manifest.size, progress)
        with suppress(Conflict):  # somebody else pushed meanwhile; what they pushed is read back
            store.put(MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n", if_none_match=True)
        there = load(store)
    if there.digest != manifest.digest:
        raise Conflict(f"{store.uri} holds another model ({there.name}, {there.digest}); choose another location")
    return there


def pull(store: AdapterStore, folder: Path, *, progress: Progress = silent) -> tuple[ModelManifest, bool]:
    """Makes `folder` the model in the store; returns its manifest, and whether anything had to be fetched.

    The folder appears whole, after every digest was checked. One that has the model already is left as it is. Files
    that an interrupted call had fetched are used; concurrent calls for one folder wait for each other.

    Raises NotFound if no model was pushed there, InvalidRequest if `folder` is something else already or cannot be
    written, DiskFull or LocalDiskError if the disk fails, DigestMismatch if the store holds other bytes than were
    pushed, StoreUnavailable if the store fails.
    """
    manifest = load(store)
    if _holds(folder, manifest):
        return manifest, False
    partial = folder.with_name(f".{folder.name}.{version_of(manifest.digest)}.part")
    wants = "it needs a writable folder around it, and cannot itself be a mount point"
    with disk_errors(f"{folder} cannot be written", action=wants):
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial, folder=True):
            if _holds(folder, manifest):  # fetched by another process while this one waited for the lock
                with suppress(OSError):
                    partial.rmdir()
                return manifest, False

            def fetch(file: FileEntry) -> int:
                target = partial / file.path
                if not target.is_file() or describe_files(partial, [file.path]) != (file,):
                    store.download(manifest.key(file), target, size=file.size, sha256=file.sha256)
                    sync(target)
                return file.size

            in_parallel(fetch, manifest.files, lambda size: size, manifest.size, progress)
            (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.rename(folder)
    return manifest, True


def check_model_folder(folder: Path) -> None:
    """Raises InvalidRequest if there is no model in a folder."""
    if not (folder / CONFIG_FILE).is_file():
        raise InvalidRequest(f"{folder} is not a model folder: it has no {CONFIG_FILE}")


def describe(folder: Path) -> ModelManifest:
    """The manifest of the model in a folder. Raises InvalidRequest, naming the file at fault."""
    check_model_folder(folder)
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.suffix in _SUFFIXES and _FILE.fullmatch(path.name) and path.name != MANIFEST
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
    return ModelManifest(name=folder.resolve().name, files=files, digest=digest_of(files))


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
    """`load`, or None if nothing was pushed yet."""
    try:
        return load(store)
    except NotFound:
        return None


def _holds(folder: Path, manifest: ModelManifest) -> bool:
    """Whether a folder has this model: by the manifest it was pulled with and the sizes, which takes no time.

    Raises InvalidRequest if it is something else, which is left alone.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    with suppress(OSError, ValidationError):
        found = ModelManifest.model_validate_json((folder / MANIFEST).read_bytes())
        sizes = [(folder / file.path).stat().st_size for file in found.files]
        if found.digest == manifest.digest and sizes == [file.size for file in found.files]:
            return True
    raise InvalidRequest(
        f"{folder} is there and is not the model {manifest.name} ({manifest.digest}); remove it or choose another"
    )
