"""Finds adapters where teams keep them: a tree of trainers' folders, here or in a store, a list, a hub's repository.

Of a run's checkpoints the newest is taken, unless the run has ended and left an adapter beside them. An adapter is
called after the last part of its path that says anything: `runs/sql/lora/checkpoint-300` is `sql`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.errors import InvalidRequest, NotFound
from dlp_core.store.documents import parse_yaml, read_regular
from dlp_core.store.hub import HUB, snapshot
from dlp_core.store.opening import is_uri, open_store

_READ = ("*.json", "*.safetensors", "*.jinja", "*.txt")
"""What is fetched of a repository of adapters."""

_LISTS = (".csv", ".yaml", ".yml")
_CHECKPOINT = re.compile(r"(?:checkpoint|step|epoch)[-_]?(\d+)")
_SAYS_NOTHING = re.compile(
    r"(?:final|best|last|latest|my|trained)?[-_]?(?:adapters?|lora|qlora|peft|models?|outputs?|results?|runs?|weights|"
    r"final|best|last|latest|default|main|out|export(?:ed)?|snapshots?)?|v?\d+|[0-9a-f]{32,64}"
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_FIELDS = ("name", "uri", "description")


class Found(NamedTuple):
    """An adapter, not looked into yet."""

    name: str
    """What it would be called in a bank."""
    location: str
    """Its folder, or the URI of it."""
    description: str | None = None
    passed_over: tuple[str, ...] = ()
    """Names of older checkpoints of the same run."""


def discover(source: str) -> list[Found]:
    """The adapters at `source`: a folder, `s3://` (or another store's) prefix, a .csv or .yaml list of name, uri and
    description, or `hf://org/name`. Sorted by name; no name twice.

    Raises NotFound if there are none, InvalidRequest for a list that cannot be read, StoreUnavailable if the store or
    the hub does not answer.
    """
    if source.startswith(HUB):
        repository = source.removeprefix(HUB)
        return _in_folder(snapshot(repository, allow=_READ), repository.partition("@")[0])
    if not is_uri(source) and source.endswith(_LISTS):
        return _listed(Path(source))
    if is_uri(source):
        root = source.rstrip("/") + "/"
        configs = [info.key for info in open_store(source).list()]
        return _named(_chosen(configs), root, source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise NotFound(f"there is no folder {source!r} on this machine")
    return _in_folder(folder, folder.resolve().name)


def _in_folder(folder: Path, called: str) -> list[Found]:
    files = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if CONFIG_FILE in names:
            files.append((Path(path) / CONFIG_FILE).relative_to(folder).as_posix())
    return _named(_chosen(files), f"{folder}{os.sep}", called)


def _chosen(files: Iterable[str]) -> Iterator[tuple[PurePosixPath, tuple[str, ...]]]:
    """Of all files' paths, the folders of adapters to take, each with the checkpoints passed over for it."""
    folders = {path.parent for path in map(PurePosixPath, files) if path.name == CONFIG_FILE and not _hidden(path)}
    runs: dict[PurePosixPath, list[tuple[int, PurePosixPath]]] = {}
    for folder in folders:
        if number := _CHECKPOINT.fullmatch(folder.name):
            runs.setdefault(folder.parent, []).append((int(number[1]), folder))
    for folder in sorted(folders):
        if _CHECKPOINT.fullmatch(folder.name) is None:
            yield folder, tuple(path.name for _, path in sorted(runs.get(folder, ())))
    for run, checkpoints in sorted(runs.items()):
        if run not in folders:
            *older, (_, newest) = sorted(checkpoints)
            yield newest, tuple(path.name for _, path in older)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _named(chosen: Iterable[tuple[PurePosixPath, tuple[str, ...]]], root: str, source: str) -> list[Found]:
    folders = list(chosen)
    if not folders:
        raise NotFound(f"there are no adapters in {source}: no folder in it has {CONFIG_FILE}")
    last = PurePosixPath(source.rstrip("/")).name
    parts = [_words(folder, last) for folder, _ in folders]
    names, counts = [words[-1] for words in parts], Counter(words[-1] for words in parts)
    for index, words in enumerate(parts):
        if counts[words[-1]] > 1:  # the same in several places: by the whole path
            names[index] = "-".join(words)
    return sorted(
        Found(name, f"{root}{folder}".removesuffix("/."), None, older)
        for name, (folder, older) in zip(_unique(names), folders, strict=True)
    )


def _words(folder: PurePosixPath, source: str) -> list[str]:
    """The parts of a path that say something, as names; the source's own if none does."""
    parts = [
        part for part in folder.parts if not _CHECKPOINT.fullmatch(part) and not _SAYS_NOTHING.fullmatch(part.lower())
    ]
    return [word for word in map(_as_name, parts) if word] or [_as_name(source) or "adapter"]


def _as_name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-._")[:128]


def _unique(names: Sequence[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        number, free = 1, name[:128]
        while free in taken:
            number += 1
            free = f"{name[:120]}-{number}"
        taken.add(free)
        yield free


def _listed(path: Path) -> list[Found]:
    try:
        text = read_regular(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else parse_yaml(text)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest(f"{path} must be a list of {', '.join(_FIELDS)}, one adapter each")
    found = [_row(path, number, row) for number, row in enumerate(rows, start=1)]
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise InvalidRequest(f"{path} names {twice[0]!r} twice")
    return sorted(found)


def _row(path: Path, number: int, row: object) -> Found:
    if not isinstance(row, dict) or not isinstance(row.get("uri"), str) or not row["uri"].strip():
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InvalidRequest(
            f"{path}, row {number}: it must have a uri, and may have a name and a description; found {keys}"
        )
    if unknown := sorted(str(key) for key in row if key not in _FIELDS):
        raise InvalidRequest(f"{path}, row {number}: unknown field {unknown[0]!r}; there are {', '.join(_FIELDS)}")
    uri = row["uri"].strip()
    if not is_uri(uri):
        uri = str(path.parent / uri)
    name = str(row.get("name") or "").strip() or _words(PurePosixPath(uri), "adapter")[-1]
    return Found(name, uri, str(row.get("description") or "").strip() or None)
