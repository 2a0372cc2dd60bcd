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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, StringConstraints, ValidationError, field_validator

from deployments.http.errors import Unauthorized
from dlp_core.errors import InvalidRequest
from dlp_core.store.records import first_problem

Value = TypeVar("Value")

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


class _SecretFile(Generic[Value]):
    """What `parse` makes of a file, which is read again when it changes.

    Raises InvalidRequest if the file cannot be used at first; later that is logged, and the value before it stays.
    """

    def __init__(self, path: Path, parse: Callable[[str, str], Value]) -> None:
        self._path = path
        self._parse = parse
        self._stamp = self._look()
        self._value = self._read()

    def value(self) -> Value:
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._value = self._read()
            except InvalidRequest as error:
                log.error("%s; what was read before stays in use", error.message)
            else:
                log.info("%s was read again", self._path)
        return self._value

    def _look(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> Value:
        try:
            content = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InvalidRequest(f"{self._path}: the secret cannot be read ({reason})") from None
        return self._parse(content, str(self._path))


class Access:
    """Tells callers apart. `admin_token_file` and `keys_file` are None where there is no such file.

    Raises InvalidRequest, without the secret, if one of them cannot be used.
    """

    def __init__(self, *, admin_token_file: Path | None = None, keys_file: Path | None = None) -> None:
        self._keys = None if keys_file is None else _SecretFile(keys_file, _parse_keys)
        self._token_file = None if admin_token_file is None else _SecretFile(admin_token_file, _parse_token)
        token = os.environ.get(TOKEN_VARIABLE)
        self._token = _parse_token(token, TOKEN_VARIABLE) if token else None

    def caller(self, authorization: str | None) -> Caller:
        """Who sent a request with this Authorization header. Raises Unauthorized."""
        if self._keys is None:
            return ANYBODY
        presented, admin = _digest(_bearer(authorization)), self._admin()
        known = [*self._keys.value(), *([] if admin is None else [(admin, ADMIN)])]
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
        """Digest of the token."""
        return self._token if self._token_file is None else self._token_file.value()


def _parse_token(content: str, where: str) -> bytes:
    token = content.strip()
    if len(token) < LEAST_CHARACTERS:
        raise InvalidRequest(f"{where}: the admin token has fewer than {LEAST_CHARACTERS} characters")
    return _digest(token)


def _parse_keys(content: str, where: str) -> list[tuple[bytes, Caller]]:
    try:
        found = _KeyFile.model_validate(yaml.safe_load(content))
    except yaml.YAMLError:
        raise InvalidRequest(f"{where}: not YAML or JSON") from None
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {first_problem(error)}") from None
    return [(_digest(key.key.get_secret_value()), Caller(key.name, key.adapters)) for key in found.keys]


def _bearer(authorization: str | None) -> str:
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _digest(secret: str) -> bytes:
    """Secrets of any length compare in the same time by their digests."""
    return hashlib.sha256(secret.encode()).digest()
