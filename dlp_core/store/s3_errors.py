"""What the errors of boto3 mean here: every one becomes an error of dlp_core.errors, in one line, without secrets."""

from __future__ import annotations

import os

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from dlp_core.errors import Conflict, DLPError, NotFound, StoreUnavailable
from dlp_core.store.protocol import one_line

_RATE_LIMITS = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"})
"""Codes of the many services that speak S3."""


def map_error(
    error: BotoCoreError | ClientError,
    *,
    key: str,
    uri: str,
    endpoint: str,
    conditional: bool = False,
    checksums: str = "when_required",
) -> DLPError:
    """The DLPError for a botocore error about object `key` of the store `uri`.

    `conditional` means that the request was a conditional write: AWS answers If-Match on a missing object
    with 404, others with 412; both mean that another writer changed it. `checksums` is the client's
    `request_checksum_calculation`.
    """
    where = location(key, uri, endpoint)
    if isinstance(error, ClientError):
        return _map_client_error(error, where=where, conditional=conditional, checksums=checksums)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnavailable(
            f"{where}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or attach a role"
        )
    if isinstance(error, SSLError):
        return _untrusted(error, where)
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError):
        return StoreUnavailable(
            f"{where} does not answer ({one_line(error)}); "
            "check that the server runs and that AWS_ENDPOINT_URL_S3 is right",
            retry_after=5.0,
        )
    return StoreUnavailable(f"{where}: {one_line(error)}; check the AWS_* settings")


def location(key: str, uri: str, endpoint: str) -> str:
    """How an error names an object, or the store if `key` is empty."""
    server = one_line(endpoint)
    return f"object {key!r} in {uri} at {server}" if key else f"{uri} at {server}"


def _untrusted(error: SSLError, where: str) -> StoreUnavailable:
    reason = str(error.kwargs.get("error", error))
    if "WRONG_VERSION_NUMBER" in reason:
        return StoreUnavailable(
            f"{where} does not speak TLS ({one_line(reason)}); if it is a plain HTTP server, write http:// in "
            "AWS_ENDPOINT_URL_S3"
        )
    bundle = os.environ.get("AWS_CA_BUNDLE")
    return StoreUnavailable(
        f"{where}: its TLS certificate is not accepted ({one_line(reason)}); AWS_CA_BUNDLE is "
        f"{bundle or 'not set'}: set it to a PEM file with the certificate of the authority that signed the server's"
    )


def _map_client_error(error: ClientError, *, where: str, conditional: bool, checksums: str) -> DLPError:
    details = error.response.get("Error", {})
    code, text = str(details.get("Code", "")), str(details.get("Message", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    reason = one_line(f"{code}: {text}")
    if code == "NoSuchBucket":
        return StoreUnavailable(f"{where}: the bucket does not exist; create it or correct the URI")
    if conditional and (status in (404, 409, 412)):
        return Conflict(f"{where} was changed by another writer; read it again and retry")
    if status == 404:
        return NotFound(f"{where} does not exist")
    if status in (411, 501):
        return _not_implemented(where, f"HTTP {status} {reason}", conditional=conditional, checksums=checksums)
    return _unavailable(where, code, status, reason)


def _unavailable(where: str, code: str, status: int, reason: str) -> StoreUnavailable:
    if status in (401, 403):
        return StoreUnavailable(
            f"{where}: access denied ({reason}); check the credentials and their policy "
            "(S3 also reports this for a missing object if s3:ListBucket is not allowed)"
        )
    if code in _RATE_LIMITS or status == 429:
        return StoreUnavailable(
            f"{where}: the store limits the rate of requests ({reason}) and still did after several attempts; "
            "retry later with fewer clients at once, or raise its limit",
            retry_after=5.0,
        )
    if 300 <= status < 500:
        return StoreUnavailable(f"{where}: refused ({reason}); check the bucket's name, AWS_REGION and the credentials")
    return StoreUnavailable(f"{where}: HTTP {status} ({reason}); retry later", retry_after=5.0)


def _not_implemented(where: str, reason: str, *, conditional: bool, checksums: str) -> StoreUnavailable:
    """A store that lacks part of S3 lacks it for good: no retry helps."""
    refused = f"{where}: the store does not implement this kind of request ({reason})"
    if checksums == "when_supported":
        return StoreUnavailable(
            f"{refused}; many lack uploads with a checksum behind them: set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required, or request_checksum_calculation in the profile"
        )
    if conditional:
        return StoreUnavailable(
            f"{refused}; publishing needs conditional writes: use a store that honours If-None-Match and "
            "If-Match on PUT"
        )
    return StoreUnavailable(
        f"{refused}; check that AWS_ENDPOINT_URL_S3 names an S3 server, and that a proxy in front of it keeps "
        "Content-Length"
    )
