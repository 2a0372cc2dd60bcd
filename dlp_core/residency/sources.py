"""Where adapters come from: a protocol, and local folders."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from dlp_core.adapter.config import read_config
from dlp_core.adapter.contents import FILES, WEIGHTS_FILE
from dlp_core.adapter.invocation import Invocation, check_spoken
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused, UnknownModel
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import describe_files, digest_of


class AdapterSource(Protocol):
    """Where adapters come from. Implemented by `FolderSource` here and by the bank's source."""

    def digest(self, name: str) -> str:
        """The digest of the adapter that `name` refers to now: of its files, and of what the source makes of them, if
        anything. Raises UnknownModel for a name outside the bank."""

    def size(self, name: str) -> int:
        """Bytes of the adapter's files; raises what `digest` raises."""

    def invocation(self, name: str) -> Invocation | None:
        """That of an activated adapter, None for an ordinary one; raises what `digest` raises."""

    def load(self, name: str) -> Adapter:
        """Read one adapter; may block. Where what a name refers to may change at any time, the adapter has its `files`:
        it is the one of a `digest` that begins with theirs. Raises AdapterRefused or AdapterUnavailable."""


class SpokenSource:
    """Adapters of another source, if they know no tokens but those of the base model's tokenizer."""

    def __init__(self, source: AdapterSource, vocabulary: Mapping[str, int]) -> None:
        """`vocabulary` maps tokens to ids."""
        self._source = source
        self._vocabulary = vocabulary
        self._token_ids = frozenset(vocabulary.values())

    def digest(self, name: str) -> str:
        return self._source.digest(name)

    def size(self, name: str) -> int:
        return self._source.size(name)

    def invocation(self, name: str) -> Invocation | None:
        return self._source.invocation(name)

    def load(self, name: str) -> Adapter:
        adapter = self._source.load(name)
        check_spoken(adapter.name, adapter.invocation, self._token_ids)
        if adapter.prompting is not None:
            adapter.prompting.check(adapter.name, self._vocabulary)
        return adapter


_SETTLED_S = 2.0
"""From this age on, the times of a file tell whether it was written since. A clock of a file system ticks every few
milliseconds to two seconds: a write in the same tick as the last one would leave the times as they are."""

_State = tuple[tuple[int, ...], ...]


class _Known(NamedTuple):
    """The digest of a folder's files, and their state when it was computed."""

    digest: str
    invocation: Invocation | None
    state: _State
    settled: bool


class FolderSource:
    """Adapters from local PEFT folders, without a store. A folder may be written while it is served: from then on its
    name means the new adapter."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._known: dict[str, _Known] = {}

    def digest(self, name: str) -> str:
        """The digest of the adapter's two files, as a bank's manifest has it. They are hashed again once they have
        changed. Raises AdapterRefused if there are none."""
        return self._look(name).digest

    def invocation(self, name: str) -> Invocation | None:
        """As `digest`. Of a config that cannot be read there is none: `load` says why."""
        return self._look(name).invocation

    def size(self, name: str) -> int:
        return (self._folder(name) / WEIGHTS_FILE).stat().st_size

    def load(self, name: str) -> Adapter:
        return read_adapter(self._folder(name), name=name, hashed=True)

    def _look(self, name: str) -> _Known:
        folder = self._folder(name)
        with disk_errors(f"adapter {name!r}: its files in {folder} cannot be read", mistake=AdapterRefused):
            known = self._known.get(name)
            if known is None or not known.settled or known.state != _state(folder):
                known = self._known[name] = _examine(folder)
            return known

    def _folder(self, name: str) -> Path:
        try:
            return self._folders[name]
        except KeyError:
            raise UnknownModel(f"no adapter {name!r}; choose from: {', '.join(sorted(self._folders))}") from None


def _examine(folder: Path) -> _Known:
    now, state = time.time(), _state(folder)
    newest_s = max(changed_ns for *_, changed_ns in state) / 1e9
    digest = digest_of(describe_files(folder, FILES))
    try:
        invocation = read_config(folder, folder.name, inside=folder)[0].invocation
    except AdapterRefused:
        invocation = None
    return _Known(digest, invocation, state, settled=now - newest_s > _SETTLED_S and state == _state(folder))


def _state(folder: Path) -> _State:
    """What changes when a file is written or replaced; last the time of that, which nobody can set."""
    stats = [(folder / name).stat() for name in FILES]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
