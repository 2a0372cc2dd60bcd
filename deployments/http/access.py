"""Access control: API keys with the adapters each may use, and the admin token.

Keys come from a YAML or JSON file, such as a mounted Kubernetes secret:

    keys:
      - name: team-a                  # chosen by the operator
        key: 8f3c...                  # at least 16 characters
        adapters: [cron, "sql-*"]     # names or patterns; default: every adapter of the bank

The file is read again when it changes, so a key can be revoked while the server runs. Without a file, every caller may
use every adapter. The admin token comes from DLP_ADMIN_TOKEN or a file, which may come and change while the server
runs; without one there are no admin routes. Secrets are compared in constant time and never appear in a log, an error
or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, SecretStr, StringConstraints, ValidationError, field_validator

from deployments.args import AccessArgs
from deployments.http.errors import Unauthorized
from dlp_core.errors import InvalidRequest
from dlp_core.store.documents import parse_yaml
from dlp_core.store.records import first_problem
from dlp_core.store.secret_file import SecretFile

TOKEN_VARIABLE = "DLP_ADMIN_TOKEN"
MIN_SECRET_CHARACTERS = 16
"""Minimum length of a key or token: a shorter one can be guessed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and the adapters they may use: names or patterns, None for every adapter of the bank."""

    name: str
    adapters: tuple[str, ...] | None = None
    digest: bytes = field(default=b"", repr=False, compare=False)
    """Of its key; empty without one."""

    @property
    def limited(self) -> bool:
        """Whether its requests are counted: those of a key are."""
        return self is not ANONYMOUS and self is not ADMIN

    def allowed(self, names: Iterable[str]) -> frozenset[str] | None:
        """The adapters among `names` that the caller may use; None for all."""
        return None if self.adapters is None else _matching(self.adapters, tuple(names))


@lru_cache(maxsize=256)
def _matching(patterns: tuple[str, ...], names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


ANONYMOUS = Caller("anybody")  # as the request log and spans name a caller without a key
ADMIN = Caller("admin")


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    key: SecretStr
    adapters: tuple[str, ...] | None = None

    @field_validator("key")
    @classmethod
    def _check_length(cls, key: SecretStr) -> SecretStr:
        if len(key.get_secret_value()) < MIN_SECRET_CHARACTERS:
            raise ValueError(f"a key needs at least {MIN_SECRET_CHARACTERS} characters")
        return key


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[_Key, ...]

    @field_validator("keys")
    @classmethod
    def _check_unique(cls, keys: tuple[_Key, ...]) -> tuple[_Key, ...]:
        for what, values in (("names", [k.name for k in keys]), ("keys", [k.key.get_secret_value() for k in keys])):
            if len(set(values)) != len(values):
                raise ValueError(f"two entries have the same {what.removesuffix('s')}")
        return keys


class Access:
    """Identifies callers. The files are None if not configured. Web pages of the `origins` may call the API from a
    browser.

    Raises InvalidRequest, without the secret, if one of them is unusable.
    """

    def __init__(
        self,
        *,
        admin_token_file: Path | None = None,
        keys_file: Path | None = None,
        metrics_token_file: Path | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self.origins = tuple(origins)
        self._keys = None if keys_file is None else SecretFile(keys_file, _parse_keys)
        self._token_file: SecretFile[bytes | None] | None = None
        if admin_token_file is not None:  # a Secret may be made after the server has started
            self._token_file = SecretFile(admin_token_file, _parse_admin_token, absent=lambda: None)
        token = os.environ.get(TOKEN_VARIABLE)
        self._token = _parse_admin_token(token, TOKEN_VARIABLE) if token else None
        self._metrics_token = (
            None if metrics_token_file is None else SecretFile(metrics_token_file, partial(_parse_token, "metrics"))
        )

    def caller(self, authorization: str | None) -> Caller:
        """The caller who presents this Authorization header. Raises Unauthorized."""
        if self._keys is None:
            return ANONYMOUS
        presented, admin = _digest(_bearer(authorization)), self._admin()
        known = [*self._keys.value(), *([] if admin is None else [(admin, ADMIN)])]
        matches = [
            caller for digest, caller in known if hmac.compare_digest(digest, presented)
        ]  # constant time: no early exit
        if not matches:
            raise Unauthorized("missing or unknown API key; send Authorization: Bearer KEY")
        return matches[0]

    def reader(self, authorization: str | None) -> Caller:
        """Who may read what is kept of requests: ADMIN all of it, a caller their own. Where there is an admin token but
        no keys, nobody's requests can be told apart, so the token is needed. Raises Unauthorized."""
        if self._keys is None and self.require_admin(authorization):
            return ADMIN
        return self.caller(authorization)

    def knows(self, authorization: str | None) -> bool:
        """Whether this header is a caller's; everybody is one where there are no keys."""
        try:
            self.caller(authorization)
        except Unauthorized:
            return False
        return True

    def require_admin(self, authorization: str | None) -> bool:
        """Check for the admin token; False if none is configured. Raises Unauthorized for any other credentials."""
        admin = self._admin()
        if admin is None:
            return False
        if not hmac.compare_digest(admin, _digest(_bearer(authorization))):
            raise Unauthorized("missing or wrong admin token; send Authorization: Bearer TOKEN")
        return True

    def require_metrics(self, authorization: str | None) -> None:
        """Check that this header may read metrics, which have what all tenants do: the admin token or the metrics
        token. Anybody may while there are neither keys nor a metrics token. Raises Unauthorized."""
        if self._keys is None and self._metrics_token is None:
            return
        presented, metrics = _digest(_bearer(authorization)), self._metrics_token
        known = [token for token in (self._admin(), None if metrics is None else metrics.value()) if token is not None]
        matches = [token for token in known if hmac.compare_digest(token, presented)]  # constant time: no early exit
        if not matches:
            raise Unauthorized(
                "metrics are for the operator: send Authorization: Bearer TOKEN with the admin token or that of "
                "access.metrics_token_file"
            )

    def _admin(self) -> bytes | None:
        """The digest of the admin token, None if not configured, or if its file is not there yet."""
        return self._token if self._token_file is None else self._token_file.value()


def open_access(args: AccessArgs) -> Access:
    """The Access that the settings describe. Raises InvalidRequest if one of their files is unusable."""
    return Access(
        admin_token_file=args.admin_token_file,
        keys_file=args.keys_file,
        metrics_token_file=args.metrics_token_file,
        origins=args.cors_origins,
    )


def _parse_token(kind: str, content: str, where: str) -> bytes:
    token = content.strip()
    if len(token) < MIN_SECRET_CHARACTERS:
        raise InvalidRequest(f"{where}: the {kind} token has fewer than {MIN_SECRET_CHARACTERS} characters")
    return _digest(token)


_parse_admin_token = partial(_parse_token, "admin")


def _parse_keys(content: str, where: str) -> list[tuple[bytes, Caller]]:
    try:
        document = parse_yaml(content)
    except ValueError as error:
        raise InvalidRequest(f"{where}: {error}") from None  # which has no secret in it, unlike its cause
    try:
        key_file = _KeyFile.model_validate(document)
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {first_problem(error)}") from None
    callers = [Caller(key.name, key.adapters, _digest(key.key.get_secret_value())) for key in key_file.keys]
    return [(caller.digest, caller) for caller in callers]


def _bearer(authorization: str | None) -> str:
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _digest(secret: str) -> bytes:
    """A fixed-length digest, so that comparing takes the same time for secrets of any length."""
    return hashlib.sha256(secret.encode()).digest()
