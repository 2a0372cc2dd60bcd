"""Publishes a local bank folder as the current bank; rolls back; verifies stored files.

Files are written first, then the manifest, then the pointer. If a publish is interrupted, the previous bank
stays current, and publishing again resumes: stored files are skipped. The pointer moves by a conditional
write, so one of two concurrent publishers wins and the other gets Conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dlp_core.adapter.examination import LENIENT, Check, Rules
from dlp_core.bank import pointer
from dlp_core.bank.difference import BankDiff, diff
from dlp_core.bank.folder import LocalFile, Report, read_base, read_folder, unreported
from dlp_core.bank.manifest import BankManifest, manifest_key
from dlp_core.bank.reading import current, load_manifest, read_version
from dlp_core.bank.served_base import ServedBase, check_served, weights_to_record
from dlp_core.errors import (
    AdapterRefused,
    BankError,
    Conflict,
    DigestMismatch,
    LocalDiskError,
    NotFound,
    StoreUnavailable,
    UnknownModel,
)
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import FileEntry, put_unchanged
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import Progress, in_parallel, silent

_ATTEMPTS = 3
_UPLOADS = 2  # of a file: it may be rewritten, with the same content, while it is read

Confirm = Callable[[BankDiff], None]
"""Called with what a publish changes, before anything is written. It may raise."""

Make = Callable[[str | None], tuple[BankManifest, Sequence[LocalFile]]]
"""Maps the current version (None if there is none) to the new manifest and its files."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of `verify`: what was read, and one line per file that differs from the manifest."""

    version: str
    files: int
    size: int
    problems: tuple[str, ...]


def publish(
    store: AdapterStore,
    folder: Path,
    *,
    version: str | None = None,
    served: ServedBase | None = None,
    check: Check | None = None,
    rules: Rules = LENIENT,
    stage: bool = False,
    report: Report = unreported,
    read: Progress = silent,
    confirm: Confirm = lambda _: None,
    progress: Progress = silent,
) -> BankManifest:
    """Publish a local bank folder as the current bank and return its manifest.

    The folder holds `bank.json` ({"base_model": "<id>"}), `adapters/<name>/` with PEFT files and, optionally,
    `router/`. Everything is validated before the first byte is written. `version` names the bank; the
    default derives from its content. Publishing the current bank again changes nothing. With `stage` the bank is stored
    and not made current: a canary or shadow to be. `served` is the base model that will serve it, whose digest the bank
    records; without it, that of the current bank's. `report` is called with the verdict on each adapter, `read` with
    the adapters read so far and all of them, `confirm` with what changes where a bank is current, `progress` with the
    bytes uploaded.

    Raises AdapterRefused or BankError for content that cannot be served, or not by `served`, Conflict after a
    concurrent publish, while a canary runs or if `version` exists with other content, StoreUnavailable if the store
    fails: the previous bank then stays current, and publishing again resumes.
    """

    base = read_base(folder)
    weights: tuple[str, ...] = ()
    if served is not None:
        check_served(base, served, strict=False)
        weights = weights_to_record(base, served)

    def make(serving: str | None) -> tuple[BankManifest, Sequence[LocalFile]]:
        before = None if serving is None else load_manifest(store, serving)
        known = before.base_model.weights if before is not None and before.base_model.id == base.id else ()
        manifest, files = read_folder(
            folder,
            version=version,
            weights=weights or known,
            check=check,
            rules=rules,
            report=report,
            progress=read,
        )
        if before is not None and not stage:
            confirm(diff(before, manifest))
        return manifest, files

    return commit(store, make, stage=stage, progress=progress)


def commit(store: AdapterStore, make: Make, *, stage: bool = False, progress: Progress = silent) -> BankManifest:
    """Publish the bank that `make` derives from the current one, or only `stage` it, and return its manifest.

    Starts again if the pointer changed meanwhile but still names the same bank (after a pin or a garbage
    collection). Raises what `publish` raises.
    """
    attempt = 1
    while True:
        before = pointer.read_free(store)
        _check_canary(store, before, stage=stage)
        serving = before[0].version if before else None
        manifest, sources = make(serving)
        _upload(store, sources, progress)
        manifest, raw = _write_manifest(store, manifest)
        if serving == manifest.version:
            return manifest
        try:
            if stage and before is not None:
                pointer.replace(store, before, before[0])  # no collection began meanwhile: what was there still is
            else:
                pointer.serve(store, before, manifest, raw)
            return manifest
        except Conflict:
            now = pointer.read_free(store)
            if before is None or now is None or now[0].version != before[0].version or attempt == _ATTEMPTS:
                raise
        attempt += 1


def rollback(store: AdapterStore, version: str | None = None, *, progress: Progress = silent) -> BankManifest:
    """Undo the latest change, and return the manifest of the bank that is current then: end the canary, or move the
    pointer to the previous bank if none runs. With a `version`, move the pointer there and end the canary. `progress`
    counts the files that are looked up.

    Raises UnknownModel if there is no such version, BankError if some of its files are missing, Conflict if another
    writer changed the pointer meanwhile.
    """
    before = pointer.read_free(store) or current(store)
    now = pointer.without_canary(before[0], "stopped", "rolled back by an operator")
    if version is None and now is not before[0]:
        pointer.replace(store, before, now)
        return load_manifest(store, now.version)
    target = version or now.previous
    if target is None:
        raise BankError(f"{store.uri} has no bank before {now.version}; name a version (`dlp bank list`)")
    manifest, raw = read_whole(store, target, progress=progress)
    if target != now.version:
        pointer.serve(store, before, manifest, raw)
    elif now is not before[0]:
        pointer.replace(store, before, now)
    return manifest


def read_whole(store: AdapterStore, version: str, *, progress: Progress = silent) -> tuple[BankManifest, bytes]:
    """The manifest of `version`, all of whose files are there, and its bytes. `progress` counts files. Raises
    UnknownModel if there is no such version, BankError if some of its files are missing."""
    manifest, raw = read_version(store, version)
    files = manifest.objects()

    def absent(file: tuple[str, FileEntry]) -> str | None:
        key, entry = file
        return None if _present(store, key, entry.size) else key

    missing = sorted(filter(None, in_parallel(absent, files, lambda key: 1, len(files), progress)))
    if missing:
        raise BankError(
            f"bank {version} cannot be served: {len(missing)} of its files are missing or have the wrong size, first "
            f"{missing[0]!r}; publish it again"
        )
    return manifest, raw


def verify(store: AdapterStore, version: str | None = None, *, progress: Progress = silent) -> VerifyReport:
    """Download every file of a bank and compare it with the manifest; keep nothing.

    Raises what `load_manifest` raises, StoreUnavailable if the store fails, and LocalDiskError if the disk does; files
    that are missing or differ are the report's `problems`.
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
            results = in_parallel(lambda job: examine(*job), jobs, lambda done: done[0], manifest.size, progress)
    problems = sorted(problem for _, problem in results if problem)
    return VerifyReport(manifest.version, len(files), manifest.size, tuple(problems))


def _check_canary(store: AdapterStore, before: pointer.State | None, *, stage: bool) -> None:
    if before is None:
        if stage:
            raise BankError(f"no bank is published in {store.uri}; publish one without --stage first")
    elif before[0].canary is not None and not stage:
        raise Conflict(
            f"bank {before[0].canary.version} is on trial as a canary in {store.uri}, against {before[0].version}; end "
            "that first: `dlp bank promote`, or `dlp bank canary --stop`"
        )


def _upload(store: AdapterStore, sources: Sequence[LocalFile], progress: Progress) -> None:
    def upload(source: LocalFile) -> int:
        for _ in range(_UPLOADS):
            if _present(store, source.key, source.entry.size):
                return source.entry.size
            if source.content is not None:
                store.put(source.key, source.content)
            elif not put_unchanged(store, source.key, source.path, source.entry):
                raise AdapterRefused(f"{source.path} changed while it was published; publish again when it is final")
        if not _present(store, source.key, source.entry.size):
            raise _altered(store, source.key)
        return source.entry.size

    total = sum(source.entry.size for source in sources)
    in_parallel(upload, sources, lambda size: size, total, progress)


def _write_manifest(store: AdapterStore, manifest: BankManifest) -> tuple[BankManifest, bytes]:
    """Create the manifest, or return the one an earlier publish of the same content left."""
    raw = manifest.model_dump_json(indent=2).encode() + b"\n"
    try:
        existing, existing_raw = read_version(store, manifest.version)
    except UnknownModel:
        try:
            store.put(manifest_key(manifest.version), raw, if_none_match=True)
            if store.get(manifest_key(manifest.version)).data != raw:
                store.delete(manifest_key(manifest.version))
                raise _altered(store, manifest_key(manifest.version))
            return manifest, raw
        except Conflict:
            existing, existing_raw = read_version(store, manifest.version)
    if existing.digest != manifest.digest:
        raise Conflict(f"bank version {manifest.version} is already in {store.uri} with other content; choose another")
    return existing, existing_raw


def _altered(store: AdapterStore, key: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{key!r} in {store.uri} is not what was written: the store keeps the framing of an upload as content, or "
        "loses some of it. The bank is not served. For S3, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required, and "
        "publish again"
    )


def _present(store: AdapterStore, key: str, size: int) -> bool:
    try:
        return store.head(key).size == size
    except NotFound:
        return False
