"""Reads, validates and describes a local bank folder before anything is published.

    bank.json                {"base_model": "<id>", "aliases": ["<another name of it>", ...],
                              "base_model_weights": ["<digest of its weights>", ...],
                              "unrouted": ["<adapter or recipe that serves by name alone>", ...],
                              "allowed_together": [["<adapter>", "<adapter>"], ...]}
    adapters/<name>/         adapter_config.json, adapter_model.safetensors, as PEFT saves them; the tokenizer, if it is
                             there, for its chat template and added tokens
                             and description.txt, if you like: what it is for, in a sentence
    recipes/<name>.json      mixes of these adapters under names of their own (dlp_core/bank/recipes.py)
    router/                  router.json, router.safetensors; a bank without a router serves named adapters only
    router/encoder/          of a router with an encoder of your own: config.json, model.safetensors, tokenizer.json

Other files, such as a README or what a trainer leaves, are neither opened nor published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.adapter.examination import LENIENT, Check, Rules, Verdict, judge, read_by
from dlp_core.adapter.prompting import PROMPT_FILE
from dlp_core.adapter.weights import Adapter
from dlp_core.bank.in_order import in_order
from dlp_core.bank.manifest import (
    MAX_DESCRIPTION,
    AdapterEntry,
    BankManifest,
    BaseModelEntry,
    EncoderEntry,
    Pairs,
    RecipeEntry,
    RouterEntry,
    bank_digest,
    labels_problem,
    ordered_pairs,
    routed_names,
)
from dlp_core.bank.recipes import read_recipes, refitted
from dlp_core.errors import AdapterRefused, BankError, InvalidRequest, LocalDiskError
from dlp_core.router import Router
from dlp_core.router.files import ENCODER_FOLDER
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import Digest, FileEntry, describe_bytes, describe_files, digest_of, version_of
from dlp_core.store.opening import is_uri
from dlp_core.store.records import Record, first_problem
from dlp_core.store.transfers import Progress, silent
from dlp_core.together import Pair, Together

FOLDER_FILE = "bank.json"
DESCRIPTION_FILE = "description.txt"

_UNKNOWN_TO_ROUTER = (
    "the router does not know it, so it serves only those who ask for it by name; dlp router add teaches it from a "
    "description or a few prompts, and unrouted in bank.json says that it is meant so"
)
_DESCRIPTION = f"it must be one line of text, at most {MAX_DESCRIPTION} characters, in UTF-8"

Report = Callable[[Verdict], None]
"""Called with the verdict on each adapter, in order."""


def unreported(verdict: Verdict) -> None:
    """A Report that reports nothing."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of a bank folder and the key it is published under."""

    key: str
    path: Path
    entry: FileEntry
    content: bytes | None = None
    """Of a file that is not in the folder, but made from what is."""


def read_folder(
    folder: Path,
    *,
    version: str | None = None,
    weights: Sequence[str] = (),
    check: Check | None = None,
    rules: Rules = LENIENT,
    report: Report = unreported,
    progress: Progress = silent,
) -> tuple[BankManifest, list[LocalFile]]:
    """The manifest that publishing this folder would create, and its files.

    `version` names the bank; the default derives from its content. `weights` are the digests of the base model's where
    bank.json has none. Adapters are read on a few threads; `check` and
    `report` are called one after the other, in order; `progress` counts adapters. Raises AdapterRefused, BankError or
    InvalidRequest, naming the file at fault.
    """
    settings, base = _read_settings(folder), read_base(folder)
    if not base.weights:
        base = base.model_copy(update={"weights": tuple(weights)})
    unrouted = set(settings.unrouted)
    router = Router.load(folder / "router") if (folder / "router").is_dir() else None
    recipes = [
        recipe.model_copy(update={"routed": _routed(recipe.name, router, unrouted)}) for recipe in read_recipes(folder)
    ]
    sources: list[LocalFile] = []
    adapters = []
    paths = adapter_folders(folder)
    read = in_order(lambda path: read_by(rules, path, name=path.name), paths)
    for path, adapter in zip(paths, read, strict=True):
        verdicts: list[Verdict] = []
        entry, files = describe_adapter(
            adapter,
            path,
            base=base,
            check=check,
            rules=rules,
            report=verdicts.append,
            routed=_routed(path.name, router, unrouted),
            description=read_description(path),
        )
        unknown = () if entry.routed or path.name in unrouted else (_UNKNOWN_TO_ROUTER,)
        for verdict in verdicts:
            report(verdict.warned(*unknown, *refitted(recipes, entry)))
        adapters.append(entry)
        sources += files
        progress(len(adapters), len(paths))
    if not adapters:
        raise BankError(f"{folder} has no adapters; put each in adapters/<name>/ with {CONFIG_FILE}")
    strangers = sorted(unrouted - {adapter.name for adapter in adapters} - {recipe.name for recipe in recipes})
    if strangers:
        raise BankError(
            f"{folder / FOLDER_FILE}: unrouted names {strangers[0]!r}, which is not an adapter or recipe of this bank"
        )
    described = None
    if router is not None:
        described, files = describe_router(folder / "router", router, routed_names(adapters, recipes))
        sources += files
    manifest = make_manifest(
        base, adapters, described, recipes, settings.pairs_allowed, version=version, where=str(folder)
    )
    return manifest, sources


def _routed(name: str, router: Router | None, unrouted: Collection[str]) -> bool:
    """Whether the router of a bank, if it has one, knows this adapter or recipe."""
    return name not in unrouted and (router is None or name in router.labels)


def adapter_folders(folder: Path) -> list[Path]:
    """The folders of a bank folder's adapters, by name."""
    return sorted((folder / "adapters").glob("[!.]*/"), key=lambda path: path.name)


def make_manifest(
    base: BaseModelEntry,
    adapters: Sequence[AdapterEntry],
    router: RouterEntry | None,
    recipes: Sequence[RecipeEntry] = (),
    allowed_together: Sequence[Pair] | None = None,
    *,
    version: str | None,
    where: str,
) -> BankManifest:
    """The manifest of a bank of these parts, created now. Raises BankError, naming `where`, if it is invalid."""
    digest = bank_digest(base, adapters, router, recipes, allowed_together)
    try:
        return BankManifest(
            version=version_of(digest) if version is None else version,
            created=datetime.now(UTC).replace(microsecond=0),
            base_model=base,
            adapters=tuple(adapters),
            router=router,
            recipes=tuple(recipes),
            allowed_together=None if allowed_together is None else tuple(allowed_together),
            digest=digest,
        )
    except ValidationError as error:
        raise BankError(f"{where} is not a valid bank: {first_problem(error)}") from None


def is_folder(location: str) -> bool:
    """Whether a location is a bank folder on this machine that nobody has published to a store."""
    return not is_uri(location) and (Path(location) / FOLDER_FILE).is_file()


def read_base(folder: Path) -> BaseModelEntry:
    """The base model that a bank folder is for. Raises BankError if it is no bank folder."""
    settings = _read_settings(folder)
    return BaseModelEntry(id=settings.base_model, aliases=settings.aliases, weights=settings.base_model_weights)


def read_together(folder: Path) -> Together:
    """What a bank folder allows to be mixed. Raises BankError, naming the file."""
    recipes = {recipe.name: recipe.mix.names for recipe in read_recipes(folder)}
    return Together(_read_settings(folder).pairs_allowed, recipes)


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> Path:
    """List the pairs that run together in a bank folder's bank.json, in place of those listed there; returns its path.
    Raises BankError if it is no bank folder, LocalDiskError or DiskFull if it cannot be written."""
    _read_settings(folder)
    path = folder / FOLDER_FILE
    partial = path.with_name(f".{FOLDER_FILE}.part")
    with disk_errors(f"{path} cannot be written", mistake=LocalDiskError):
        document = json.loads(path.read_text("utf-8")) | {"allowed_together": list(ordered_pairs(pairs))}
        try:
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", "utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _read_settings(folder: Path) -> _FolderFile:
    path = folder / FOLDER_FILE
    content = 'it must hold {"base_model": "<id>"}'
    try:
        with disk_errors(f"{path} cannot be read", mistake=BankError, action=content):
            return _FolderFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BankError(f"{path}: {content}: {first_problem(error)}") from None


class _FolderFile(Record):
    base_model: str = Field(min_length=1)
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    base_model_weights: tuple[Digest, ...] = ()
    unrouted: tuple[str, ...] = ()
    allowed_together: Pairs | None = None

    @property
    def pairs_allowed(self) -> tuple[Pair, ...] | None:
        return None if self.allowed_together is None else ordered_pairs(self.allowed_together)


def describe_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base: BaseModelEntry,
    check: Check | None,
    routed: bool,
    description: str | None,
    rules: Rules = LENIENT,
    report: Report = unreported,
) -> tuple[AdapterEntry, list[LocalFile]]:
    """The manifest entry of an adapter that was read from `folder` (dlp_core.adapter.examination.read_by), and its
    files. Raises AdapterRefused."""
    adapter, verdict = judge(adapter, folder, base=base.names, check=check, rules=rules)
    prompts = {} if adapter.prompting is None else {PROMPT_FILE: adapter.prompting.content}
    files = (*adapter.files, *(describe_bytes(path, content) for path, content in prompts.items()))
    report(verdict)
    digest = digest_of(files)
    entry = AdapterEntry(
        name=adapter.name,
        version=version_of(digest),
        files=files,
        digest=digest,
        rank=adapter.rank,
        modules=tuple(sorted({module.rpartition(".")[2] for module in adapter.modules})),
        routed=routed,
        description=description,
        alora_invocation_tokens=adapter.invocation,
    )
    return entry, [LocalFile(entry.key(file.path), folder / file.path, file, prompts.get(file.path)) for file in files]


def read_description(folder: Path) -> str | None:
    """What an adapter's folder says it is for, None if it does not. Raises AdapterRefused, naming the file, if that is
    not a line of text."""
    path = folder / DESCRIPTION_FILE
    if not path.exists():
        return None
    try:
        with disk_errors(f"{path} cannot be read", mistake=AdapterRefused, action=_DESCRIPTION):
            return checked_description(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, InvalidRequest):
        raise AdapterRefused(f"{path}: {_DESCRIPTION}") from None


def checked_description(text: str) -> str:
    """What an adapter is for, without space around it. Raises InvalidRequest unless it is a line of text."""
    text = text.strip()
    if not text or len(text) > MAX_DESCRIPTION or not text.isprintable():
        raise InvalidRequest(f"a description: {_DESCRIPTION}")
    return text


def describe_router(folder: Path, router: Router, names: Sequence[str]) -> tuple[RouterEntry, list[LocalFile]]:
    """The manifest entry of the `router` that `folder` holds, and its files. Raises BankError unless it routes exactly
    `names`."""
    if sorted(router.labels) != sorted(names):
        raise BankError(f"{folder}: {labels_problem(router.labels, names)}; train the router for these adapters")
    encoder: EncoderEntry | None = None
    encoder_files: list[LocalFile] = []
    if isinstance(router.encoder, SentenceEncoder):
        encoder, encoder_files = _describe_encoder(folder / ENCODER_FOLDER)
    files = describe_files(folder, RouterEntry.FILES)
    entry = RouterEntry(
        version=version_of(digest_of(files)),
        files=files,
        digest=digest_of(files),
        labels=router.labels,
        encoder=encoder,
    )
    return entry, [*(LocalFile(entry.key(file.path), folder / file.path, file) for file in files), *encoder_files]


def _describe_encoder(folder: Path) -> tuple[EncoderEntry, list[LocalFile]]:
    files = describe_files(folder, EncoderEntry.FILES)
    entry = EncoderEntry(version=version_of(digest_of(files)), files=files, digest=digest_of(files))
    return entry, [LocalFile(entry.key(file.path), folder / file.path, file) for file in files]
