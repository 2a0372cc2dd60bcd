"""Adapter names: valid names in a bank, and the engine's names, which include the version."""

from __future__ import annotations

import re

from dlp_core.errors import InvalidRequest

AUTO = "auto"
"""The model name that requests routing; no adapter may have it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SEPARATOR = "@"  # not a valid character in names and versions


def validate_name(name: str) -> str:
    """Return `name` if it is a safe adapter name: it becomes a key in the store and a folder on disk.

    Raises InvalidRequest otherwise.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"adapter name {name[:140]!r} is not valid: use 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


def qualify(name: str, version: str) -> str:
    """The engine's name for one version of an adapter: `name@version`."""
    return f"{name}{_SEPARATOR}{version}"


def unqualify(name: str) -> str:
    """The bank's name for the engine's `name@version`; a name without a version is returned unchanged."""
    return name.partition(_SEPARATOR)[0]
