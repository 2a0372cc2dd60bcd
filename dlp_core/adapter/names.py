"""Names of adapters."""

from __future__ import annotations

import re

from dlp_core.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
