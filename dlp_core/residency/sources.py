"""Where adapters come from: a protocol, and local folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dlp_core.adapter.weights import WEIGHTS_FILE, Adapter, read_adapter
from dlp_core.errors import UnknownModel


class AdapterSource(Protocol):
    """Where adapters come from. Implemented by `FolderSource` here and by the bank's source."""

    def digest(self, name: str) -> str:
        """The digest of the adapter that `name` refers to now; raises UnknownModel for a name outside the bank."""

    def size(self, name: str) -> int:
        """Bytes of the adapter's files; raises what `digest` raises."""

    def load(self, name: str) -> Adapter:
        """Read one adapter; may block. Raises AdapterRefused or AdapterUnavailable."""


class FolderSource:
    """Adapters from local PEFT folders, without a store."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._digests: dict[str, str] = {}

    def digest(self, name: str) -> str:
        """The digest of the weights file, computed on the first call."""
        if name not in self._digests:
            with (self._folder(name) / WEIGHTS_FILE).open("rb") as file:
                self._digests[name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return self._digests[name]

    def size(self, name: str) -> int:
        return (self._folder(name) / WEIGHTS_FILE).stat().st_size

    def load(self, name: str) -> Adapter:
        return read_adapter(self._folder(name), name=name)

    def _folder(self, name: str) -> Path:
        try:
            return self._folders[name]
        except KeyError:
            raise UnknownModel(f"no adapter {name!r}; choose from: {', '.join(sorted(self._folders))}") from None
