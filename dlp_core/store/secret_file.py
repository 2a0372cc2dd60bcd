"""A file that holds a secret, such as one of a mounted Kubernetes Secret, read again when it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from dlp_core.errors import InvalidRequest
from dlp_core.store.documents import read_regular

Value = TypeVar("Value")

log = logging.getLogger(__name__)


class SecretFile(Generic[Value]):
    """The parsed content of a file. `parse` takes content and path, and raises InvalidRequest without the secret.

    Raises InvalidRequest if the file is unusable at the start, or is not there and `absent` does not give a value for
    that. Later failures are logged and the last good value stays.
    """

    def __init__(
        self, path: Path, parse: Callable[[str, str], Value], *, absent: Callable[[], Value] | None = None
    ) -> None:
        self._path = path
        self._parse = parse
        self._last_fingerprint = self._fingerprint()
        self._value = self._read() if absent is None or self._last_fingerprint else absent()

    def value(self) -> Value:
        fingerprint = self._fingerprint()
        if fingerprint != self._last_fingerprint:
            self._last_fingerprint = fingerprint
            try:
                self._value = self._read()
            except InvalidRequest as error:
                log.error("%s; the last valid content stays in use", error.message)
            else:
                log.info("reloaded %s", self._path)
        return self._value

    def _fingerprint(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> Value:
        try:
            content = read_regular(self._path).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InvalidRequest(f"{self._path}: the secret cannot be read ({reason})") from None
        return self._parse(content, str(self._path))
