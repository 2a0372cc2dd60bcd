"""Publishing: a local bank folder becomes the bank that serves; rollback, and verification of what is stored.

The order of writes is blobs, manifest, pointer. Whatever stops a publish, the bank that served before still
serves, and publishing again resumes: what is already stored is skipped. The pointer moves by a conditional
write, so of two publishers at once one wins and the other is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.bank import pointer
from dlp_core.bank.folder import Check, LocalFile, read_folder
from dlp_core.bank.manifest import BankManifest, manifest_key
from dlp_core.bank.reading import current, load_manifest, read_version
from dlp_core.errors import AdapterRefused, BankError, Conflict, DigestMismatch, LocalDiskError, NotFound, UnknownModel
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import FileEntry
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import Progress, in_parallel, put_unchanged, silent

_ATTEMPTS = 3

Make = Callable[[str | None], tuple[BankManifest, Sequence[LocalFile]]]
"""From the version that serves (None: none yet) to the bank that shall, and its files."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of `verify`: what was read, and one line for each file that is not as promised."""

    version: str
    files: int
    size: int
    problems: tuple[str, ...]


def publish(
    store: AdapterStore,
    folder: Path,
    *,
    version: str | None = None,
    check: Check | None = None,
    progress: Progress = silent,
) -> BankManifest:
    """Makes a local bank folder the bank that serves, and returns its manifest.

    The folder holds `bank.json` ({"base_model": "<id>"}), `adapters/<name>/` with PEFT files and, optionally,
    `router/`. All of it is validated before the first byte is written. `version` names the bank; by default
    its content does. Publishing what already serves changes nothing.

    Raises AdapterRefused or BankError for content that cannot be served, Conflict if somebody else published
    meanwhile or `version` is taken by another content, StoreUnavailable if the store fails: the bank that
    served before then still does, and publishing again resumes.
    """
    return commit(store, lambda before: read_folder(folder, version=version, check=check), progress=progress)


def commit(store: AdapterStore, make: Make, *, progress: Progress = silent) -> BankManifest:
    """Lets the bank serve that `make` makes of the one that serves now, and returns its manifest.

    If the pointer changed meanwhile without another bank taking over (somebody pinned a version, or collected
    garbage), it starts again. Raises what `publish` raises.
    """
    attempt = 1
    while True:
        before = pointer.read_free(store)
        serving = before[0].version if before else None
        manifest, sources = make(serving)
        _upload(store, sources, progress)
        manifest, raw = _write_manifest(store, manifest)
        if serving == manifest.version:
            return manifest
        try:
            pointer.serve(store, before, manifest, raw)
            return manifest
        except Conflict:
            now = pointer.read_free(store)
            if before is None or now is None or now[0].version != before[0].version or attempt == _ATTEMPTS:
                raise
        attempt += 1


def rollback(store: AdapterStore, version: str | None = None) -> BankManifest:
    """Moves the pointer to `version`, by default to the bank that served before, and returns its manifest.

    Raises UnknownModel if there is no such version, BankError if files of it are missing, Conflict if somebody
    else moved the pointer meanwhile.
    """
    before = pointer.read_free(store) or current(store)
    target = version or before[0].previous
    if target is None:
        raise BankError(f"{store.uri} has had no bank before {before[0].version}; name a version (`dlp bank list`)")
    manifest, raw = read_version(store, target)
    missing = [key for key, file in manifest.objects() if not _present(store, key, file.size)]
    if missing:
        raise BankError(
            f"bank {target} cannot serve: {len(missing)} of its files are missing or of another size, first "
            f"{missing[0]!r}; publish it again"
        )
    if target != before[0].version:
        pointer.serve(store, before, manifest, raw)
    return manifest


def verify(store: AdapterStore, version: str | None = None, *, progress: Progress = silent) -> VerifyReport:
    """Downloads every file of a bank and compares it with the manifest; keeps nothing.

    Raises what `load_manifest` raises, StoreUnavailable if the store fails, and LocalDiskError if the disk does; files
    that are missing or different are the report's `problems`.
    """
    manifest = load_manifest(store, version)
    files = manifest.objects()
    with TemporaryDirectory(prefix="dlp-verify-") as folder:

        def examine(number: int, key: str, file: FileEntry) -> tuple[int, str | None]:
            target = Path(folder, str(number))
            try:
                store.download(key, target, size=file.size, sha256=file.sha256)
            except (NotFound, DigestMismatch) as error:
                return file.size, error.message
            target.unlink()
            return file.size, None

        jobs = [(number, key, file) for number, (key, file) in enumerate(files)]
        with disk_errors(f"{folder}: the files to verify cannot be written", mistake=LocalDiskError):
            found = in_parallel(lambda job: examine(*job), jobs, lambda done: done[0], manifest.size, progress)
    problems = sorted(problem for _, problem in found if problem)
    return VerifyReport(manifest.version, len(files), manifest.size, tuple(problems))


def _upload(store: AdapterStore, sources: Sequence[LocalFile], progress: Progress) -> None:
    def upload(source: LocalFile) -> int:
        stored = _present(store, source.key, source.entry.size)
        if not stored and not put_unchanged(store, source.key, source.path, source.entry):
            raise AdapterRefused(f"{source.path} changed while it was published; publish again when it is final")
        return source.entry.size

    total = sum(source.entry.size for source in sources)
    in_parallel(upload, sources, lambda size: size, total, progress)


def _write_manifest(store: AdapterStore, manifest: BankManifest) -> tuple[BankManifest, bytes]:
    """Creates the manifest, or finds the one an earlier publish of the same content left."""
    raw = manifest.model_dump_json(indent=2).encode() + b"\n"
    try:
        existing, found = read_version(store, manifest.version)
    except UnknownModel:
        try:
            store.put(manifest_key(manifest.version), raw, if_none_match=True)
            return manifest, raw
        except Conflict:
            existing, found = read_version(store, manifest.version)
    if existing.digest != manifest.digest:
        raise Conflict(f"bank version {manifest.version} is already in {store.uri} with other content; choose another")
    return existing, found


def _present(store: AdapterStore, key: str, size: int) -> bool:
    try:
        return store.head(key).size == size
    except NotFound:
        return False
