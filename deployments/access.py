"""Who may do what: API keys with the adapters each may use, and the admin token.

Keys come from a file, as a Kubernetes secret is mounted, in YAML or JSON:

    keys:
      - name: team-a                  # what the operator calls it
        key: 8f3c...                  # at least 16 characters
        adapters: [cron, "sql-*"]     # names or patterns; all of the bank when left out

The file is read again when it changes: a key can be revoked while the server runs. Without a file everybody may use
everything. The admin token is DLP_ADMIN_TOKEN or a file; without one there are no admin routes. Secrets are compared
in constant time and never appear in a log, an error or a representation.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, StringConstraints, ValidationError, field_validator

from deployments.errors_http import Unauthorized
from dlp_core.errors import InvalidRequest

log = logging.getLogger("ray.serve")

TOKEN_VARIABLE = "DLP_ADMIN_TOKEN"
LEAST_CHARACTERS = 16
"""Of a key or token: fewer can be guessed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and the adapters there are for them: names or patterns, None for all of the bank."""

    name: str
    adapters: tuple[str, ...] | None = None

    def allowed(self, names: Iterable[str]) -> frozenset[str] | None:
        """Which of a bank's adapters they may use; None for all."""
        return None if self.adapters is None else _matching(self.adapters, tuple(names))


@lru_cache(maxsize=256)
def _matching(patterns: tuple[str, ...], names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


ANYBODY = Caller("anybody")
ADMIN = Caller("admin")


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    key: SecretStr
    adapters: tuple[str, ...] | None = None

    @field_validator("key")
    @classmethod
    def _is_long(cls, key: SecretStr) -> SecretStr:
        if len(key.get_secret_value()) < LEAST_CHARACTERS:
            raise ValueError(f"a key has at least {LEAST_CHARACTERS} characters")
        return key


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[_Key, ...]

    @field_validator("keys")
    @classmethod
    def _differ(cls, keys: tuple[_Key, ...]) -> tuple[_Key, ...]:
        for what, values in (("names", [k.name for k in keys]), ("keys", [k.key.get_secret_value() for k in keys])):
            if len(set(values)) != len(values):
                raise ValueError(f"two entries have the same {what.removesuffix('s')}")
        return keys


@dataclass(slots=True)
class _SecretFile:
    """A file that is read again when it changes. A change that cannot be read changes nothing, and is logged."""

    path: Path
    _stamp: tuple[int, int, int] | None = None
    _content: str = field(default="", repr=False)

    def read(self) -> tuple[str, bool]:
        """The content, and whether it is new. Raises InvalidRequest if it cannot be read the first time."""
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp == self._stamp:
                return self._content, False
            self._content, self._stamp = self.path.read_text(encoding="utf-8"), stamp
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp is None:
                reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
                raise InvalidRequest(f"{self.path}: the secret cannot be read ({reason})") from None
            return self._content, False
        return self._content, True


class Access:
    """Tells callers apart. `admin_token_file` and `keys_file` are None where there is no such file.

    Raises InvalidRequest, without the secret, if one of them cannot be used.
    """

    def __init__(self, *, admin_token_file: Path | None = None, keys_file: Path | None = None) -> None:
        self._token_file = None if admin_token_file is None else _SecretFile(admin_token_file)
        self._keys_file = None if keys_file is None else _SecretFile(keys_file)
        self._keys: list[tuple[bytes, Caller]] = []
        self._admin()
        if self._keys_file is not None:
            self._keys = _parse(self._keys_file.read()[0], self._keys_file.path)

    def caller(self, authorization: str | None) -> Caller:
        """Who sent a request with this Authorization header. Raises Unauthorized."""
        if self._keys_file is None:
            return ANYBODY
        self._refresh()
        presented = _digest(_bearer(authorization))
        admin = self._admin()
        known = self._keys if admin is None else [*self._keys, (admin, ADMIN)]
        found = [caller for digest, caller in known if hmac.compare_digest(digest, presented)]  # all are compared
        if not found:
            raise Unauthorized("this server wants an API key it knows, as Authorization: Bearer KEY")
        return found[0]

    def require_admin(self, authorization: str | None) -> bool:
        """False if this server has no admin token. Raises Unauthorized for anything but the token."""
        admin = self._admin()
        if admin is None:
            return False
        if not hmac.compare_digest(admin, _digest(_bearer(authorization))):
            raise Unauthorized("this route wants the admin token, as Authorization: Bearer TOKEN")
        return True

    def _admin(self) -> bytes | None:
        if self._token_file is not None:
            token, where = self._token_file.read()[0].strip(), str(self._token_file.path)
        else:
            token, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
            if not token:
                return None
        if len(token) < LEAST_CHARACTERS:
            raise InvalidRequest(f"{where}: the admin token has fewer than {LEAST_CHARACTERS} characters")
        return _digest(token)

    def _refresh(self) -> None:
        assert self._keys_file is not None
        content, new = self._keys_file.read()
        if new:
            try:
                self._keys = _parse(content, self._keys_file.path)
            except InvalidRequest as error:
                log.error("%s; the keys that were read before stay in use", error.message)
            else:
                names = ", ".join(caller.name for _, caller in self._keys)
                log.info("%s was read again; there are keys of %s", self._keys_file.path, names or "nobody")


def _parse(content: str, path: Path) -> list[tuple[bytes, Caller]]:
    try:
        found = _KeyFile.model_validate(yaml.safe_load(content))
    except yaml.YAMLError:
        raise InvalidRequest(f"{path}: not YAML or JSON") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path}: {place or 'the file'}: {first['msg']}") from None
    return [(_digest(key.key.get_secret_value()), Caller(key.name, key.adapters)) for key in found.keys]


def _bearer(authorization: str | None) -> str:
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _digest(secret: str) -> bytes:
    """Secrets of any length compare in the same time by their digests."""
    return hashlib.sha256(secret.encode()).digest()
