"""Names of adapters: those a bank may use, and those the engine tells two versions of one adapter apart by."""

from __future__ import annotations

import re

from dlp_core.errors import InvalidRequest

AUTO = "auto"
"""The model name that asks for routing; an adapter of that name could never be asked for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SEPARATOR = "@"  # no character of a name or a version


def validate_name(name: str) -> str:
    """Returns `name` if it is a safe adapter name: it becomes a key in the store and a folder on disk.

    Raises InvalidRequest otherwise.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"adapter name {name[:140]!r} is not valid: use 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


def qualify(name: str, version: str) -> str:
    """What the engine calls one version of an adapter: `name@version`."""
    return f"{name}{_SEPARATOR}{version}"


def unqualify(name: str) -> str:
    """The name in the bank of what the engine calls `name@version`; a name without a version stays as it is."""
    return name.partition(_SEPARATOR)[0]
