"""A local bank folder, as an engineer or CI builds it: read, validated and described before anything is published.

    bank.json                {"base_model": "<id>"}
    adapters/<name>/         adapter_config.json, adapter_model.safetensors, as PEFT saves them
    router/                  router.json, router.safetensors; a bank without a router serves named adapters only

Other files, such as a README, stay at home. Pickles are refused wherever they lie: what looks like weights and
can run code has no place near a bank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from dlp_core.adapter import Adapter, check_base, read_adapter
from dlp_core.bank import (
    AdapterEntry,
    BankManifest,
    BaseModelEntry,
    FileEntry,
    Record,
    RouterEntry,
    bank_digest,
    digest_of,
    first_problem,
    labels_problem,
    version_of,
)
from dlp_core.errors import AdapterRefused, BankError
from dlp_core.peft_config import CONFIG_FILE
from dlp_core.router import Router

FOLDER_FILE = "bank.json"

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")

Check = Callable[[Adapter], None]
"""Called with each adapter before anything is written; raises AdapterRefused to stop."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file of a bank folder, and the key it is published under."""

    key: str
    path: Path
    entry: FileEntry


def read_folder(
    folder: Path, *, version: str | None = None, check: Check | None = None
) -> tuple[BankManifest, list[LocalFile]]:
    """The manifest this folder would get, and its files.

    `version` names the bank, by default its content does. Raises AdapterRefused, BankError or InvalidRequest,
    naming the file at fault.
    """
    base = BaseModelEntry(id=_read_base_id(folder))
    sources: list[LocalFile] = []
    adapters = []
    for path in sorted((folder / "adapters").glob("[!.]*/"), key=lambda path: path.name):
        adapters.append(_describe_adapter(path, base.id, check))
        sources += [LocalFile(adapters[-1].key(file.path), path / file.path, file) for file in adapters[-1].files]
    if not adapters:
        raise BankError(f"{folder} has no adapters; put each in adapters/<name>/ with {CONFIG_FILE}")
    router = None
    if (folder / "router").is_dir():
        router = _describe_router(folder / "router", [adapter.name for adapter in adapters])
        sources += [LocalFile(router.key(file.path), folder / "router" / file.path, file) for file in router.files]
    digest = bank_digest(base, adapters, router)
    try:
        manifest = BankManifest(
            version=version_of(digest) if version is None else version,
            created=datetime.now(UTC).replace(microsecond=0),
            base_model=base,
            adapters=tuple(adapters),
            router=router,
            digest=digest,
        )
    except ValidationError as error:
        raise BankError(f"{folder} is no valid bank: {first_problem(error)}") from None
    return manifest, sources


def _read_base_id(folder: Path) -> str:
    path = folder / FOLDER_FILE
    try:
        return _FolderFile.model_validate_json(path.read_bytes()).base_model
    except OSError as error:
        raise BankError(f'{path} cannot be read ({error.strerror}); it must hold {{"base_model": "<id>"}}') from None
    except ValidationError as error:
        raise BankError(f'{path} must hold {{"base_model": "<id>"}}: {first_problem(error)}') from None


class _FolderFile(Record):
    base_model: str = Field(min_length=1)


def _describe_adapter(folder: Path, base_id: str, check: Check | None) -> AdapterEntry:
    adapter = read_adapter(folder, name=folder.name)
    _refuse_pickles(folder, f"adapter {folder.name!r}")
    check_base(adapter, base_id)
    if check is not None:
        check(adapter)
    files = describe_files(folder, AdapterEntry.FILES)
    return AdapterEntry(
        name=adapter.name,
        version=version_of(digest_of(files)),
        files=files,
        digest=digest_of(files),
        rank=adapter.rank,
        modules=tuple(sorted({module.rpartition(".")[2] for module in adapter.modules})),
    )


def _describe_router(folder: Path, names: Sequence[str]) -> RouterEntry:
    _refuse_pickles(folder, "the router")
    labels = Router.load(folder).labels
    if sorted(labels) != sorted(names):
        raise BankError(f"{folder}: {labels_problem(labels, names)}; train the router for these adapters")
    files = describe_files(folder, RouterEntry.FILES)
    return RouterEntry(version=version_of(digest_of(files)), files=files, digest=digest_of(files), labels=labels)


def _refuse_pickles(folder: Path, what: str) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLES:
            raise AdapterRefused(f"{what}: {path.name} is a pickle, and no pickle gets near a bank; remove it")


def describe_files(folder: Path, names: Sequence[str]) -> tuple[FileEntry, ...]:
    """Size and sha256 of each file, in the order of `names`."""
    entries = []
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append(FileEntry(path=name, size=file.tell(), sha256=digest))
    return tuple(entries)
