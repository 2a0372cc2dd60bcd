"""Copies adapters from where they are kept into a bank folder: of each what is read, and what became of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dlp_core.adapter.base_names import BaseNames
from dlp_core.adapter.examination import Check, Rules, judge, read_by
from dlp_core.adapter.names import validate_name
from dlp_core.adapter.prompting import PROMPT_FILE
from dlp_core.bank.discovery import Found
from dlp_core.bank.folder import DESCRIPTION_FILE, FOLDER_FILE, checked_description, read_description
from dlp_core.errors import AdapterRefused, DLPError, InvalidRequest
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import describe_files
from dlp_core.store.local_copy import local_copy


class Outcome(NamedTuple):
    """What became of one adapter."""

    name: str
    location: str
    result: Literal["taken", "changed", "present", "refused"]
    """Changed: taken, and `said` has what is not as its trainer left it. Present: the folder has it already."""
    said: tuple[str, ...]


def start_bank(folder: Path, base_model: str, aliases: Sequence[str] = (), *, weights: str | None = None) -> None:
    """Make a bank folder for adapters of a base model, whose `weights` have this digest, without adapters yet. Raises
    InvalidRequest if it is one."""
    path = folder / FOLDER_FILE
    if path.exists():
        raise InvalidRequest(f"{path} exists: {folder} is a bank folder already")
    settings: dict[str, object] = {"base_model": base_model} | ({"aliases": list(aliases)} if aliases else {})
    if weights is not None:
        settings["base_model_weights"] = [weights]
    with disk_errors(f"{folder} cannot be written"):
        (folder / "adapters").mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")


def import_adapters(
    found: Sequence[Found],
    folder: Path,
    *,
    base: BaseNames,
    check: Check | None = None,
    replace: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[Outcome]:
    """Bring each adapter into the bank folder, one after the other. What is refused leaves nothing there; what the
    folder has under that name stays, unless `replace`."""
    for number, one in enumerate(found):
        progress(number, len(found))
        yield _outcome(one, folder, base=base, check=check, replace=replace)
    progress(len(found), len(found))


def _outcome(one: Found, folder: Path, *, base: BaseNames, check: Check | None, replace: bool) -> Outcome:
    try:
        validate_name(one.name)
        with local_copy(one.location) as source:
            return _imported(one, source, folder / "adapters" / one.name, base=base, check=check, replace=replace)
    except DLPError as error:
        return Outcome(one.name, one.location, "refused", (error.message,))


def _imported(
    one: Found, source: Path, target: Path, *, base: BaseNames, check: Check | None, replace: bool
) -> Outcome:
    rules = Rules(hub_links=True)
    adapter = read_by(rules, source, name=one.name)
    adapter, verdict = judge(adapter, source, base=base, check=check, rules=rules)
    description = read_description(source) if one.description is None else checked_description(one.description)
    files = [file.path for file in adapter.files]
    if target.exists():
        if _same(target, files, adapter.files):
            return Outcome(one.name, one.location, "present", ())
        if not replace:
            raise AdapterRefused(f"{target} has another adapter of that name; --replace takes this one in its place")
    partial, replaced = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.replaced")
    with disk_errors(f"{target} cannot be written"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in files:
            shutil.copyfile(source / name, partial / name)
        if adapter.prompting is not None:
            (partial / PROMPT_FILE).write_bytes(adapter.prompting.content)
        if description is not None:
            (partial / DESCRIPTION_FILE).write_text(description + "\n", "utf-8")
        if target.exists():  # a kill between the two leaves both, complete
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    said = [*verdict.notes, *verdict.warnings]
    if one.passed_over:
        said.insert(0, f"{source.name} is taken, {', '.join(one.passed_over)} are passed over")
    return Outcome(one.name, one.location, "changed" if said else "taken", tuple(said))


def _same(folder: Path, names: Sequence[str], files: Sequence[object]) -> bool:
    return all((folder / name).is_file() for name in names) and list(describe_files(folder, names)) == list(files)
