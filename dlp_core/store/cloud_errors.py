"""What the errors of obstore mean here: every one becomes an error of dlp_core.errors, in one line.

obstore has a class for a few HTTP statuses and tells the rest in words: a sentence, and after "Debug source:" the
error it came from. Statuses, codes and causes are read from there. The words themselves are not repeated: they are
long, and hold URLs and what the server said about the credentials.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError

from dlp_core.errors import Conflict, DLPError, NotFound, StoreUnavailable
from dlp_core.store.cloud_settings import Cloud
from dlp_core.store.protocol import one_line

_STATUS = re.compile(r"status code: (\d{3})|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_NO_BUCKET = re.compile(r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>|The specified container does not exist")
_RIVALS = frozenset({"", "BlobAlreadyExists", "Conflict"})
"""Codes of a 409 that another writer caused. Azure answers 409 for much else, and 412 for a lease too."""
_RATE_LIMITS = frozenset({"SlowDown", "ServerBusy", "OperationTimedOut", "TooManyRequests"})

_TLS = re.compile(r"InvalidCertificate|InvalidMessage|AlertReceived|HandshakeFailure|PeerIncompatible")
_CREDENTIALS = re.compile(
    r"performing token request|token response body|service account file|Invalid Access Key|SAS key|SAS component|"
    r"pem file|CryptoProvider|azure cli|federated token"
)
_CREDENTIALS_KIND = re.compile(r"unknown variant `(\w{1,64})`")
_CAUSES = (
    (re.compile(r"TimedOut|kind: Timeout"), "it was silent for too long"),
    (re.compile(r"dns error"), "its name cannot be resolved"),
    (re.compile(r"ConnectionRefused"), "connection refused"),
    (re.compile(r"ConnectionReset|ConnectionAborted|BrokenPipe|IncompleteMessage|UnexpectedEof|Body"), "it hung up"),
)
_TRANSPORT = re.compile(r"HTTP error|HttpError|reqwest|hyper|UnexpectedRange|NoContentRange|NotPartial")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an error says: the status (0 if there was no answer), the code in its body, and all its words."""

    status: int
    code: str
    words: str

    @property
    def by_a_rival(self) -> bool:
        """Whether a conditional write failed because of another writer."""
        if self.status == 409:
            return self.code in _RIVALS
        return self.status == 404 or (self.status == 412 and not self.code.startswith("Lease"))

    @property
    def reason(self) -> str:
        return f"HTTP {self.status} {self.code}".rstrip()


def map_error(
    error: BaseError | FileNotFoundError, *, cloud: Cloud, key: str, uri: str, endpoint: str, conditional: bool = False
) -> DLPError:
    """The DLPError for an error of obstore about object `key` of the store `uri`; the store itself if it is empty.

    `conditional` means that the request was a conditional write: a missing object, a conflict and a failed condition
    all mean that another writer changed it.
    """
    where = f"object {key!r} in {uri} at {one_line(endpoint)}" if key else f"{uri} at {one_line(endpoint)}"
    answer = _read(error)
    if _NO_BUCKET.search(answer.words):
        return StoreUnavailable(f"{where}: the {cloud.bucket} does not exist; create it or correct the URI")
    if _CREDENTIALS.search(answer.words):
        return _no_credentials(answer.words, where, cloud)
    if conditional and answer.by_a_rival:
        return Conflict(f"{where} was changed by another writer; read it again and retry")
    if answer.status == 404:
        return NotFound(f"{where} does not exist")
    return _refused(answer, where, cloud) if answer.status else _unanswered(error, where, cloud)


def _read(error: Exception) -> _Answer:
    words = str(error)
    found = _STATUS.search(words)
    status = int(found[1] or found[2]) if found else 0
    if not status and isinstance(error, FileNotFoundError | AlreadyExistsError):
        status = 404 if isinstance(error, FileNotFoundError) else 409
    code = _CODE.search(words)
    return _Answer(status, code[1] if code else "", words)


def _refused(answer: _Answer, where: str, cloud: Cloud) -> StoreUnavailable:
    status, reason = answer.status, answer.reason
    if status in (401, 403):
        return StoreUnavailable(f"{where}: access denied ({reason}); {cloud.credentials}. They need {cloud.roles}")
    if status == 429 or answer.code in _RATE_LIMITS:
        return StoreUnavailable(
            f"{where}: the store limits the rate of requests ({reason}) and still did after several attempts; "
            "retry later with fewer clients at once, or raise its limit",
            retry_after=5.0,
        )
    if status < 500 or status == 501:
        return StoreUnavailable(
            f"{where}: refused ({reason}); check the {cloud.bucket}, what protects it (leases, retention) and the "
            "credentials"
        )
    return StoreUnavailable(f"{where}: {reason}; retry later", retry_after=5.0)


def _no_credentials(words: str, where: str, cloud: Cloud) -> StoreUnavailable:
    kind = _CREDENTIALS_KIND.search(words)
    what = f"credentials of the kind {kind[1]} cannot be used" if kind else "there are no usable credentials"
    return StoreUnavailable(f"{where}: {what}; {cloud.credentials}")


def _unanswered(error: Exception, where: str, cloud: Cloud) -> StoreUnavailable:
    words = str(error)
    if isinstance(error, InvalidPathError):
        return StoreUnavailable(
            f"{where} has an object with an empty, '.' or '..' segment in its name, which cannot be read; move it away"
        )
    if _TLS.search(words):
        return StoreUnavailable(
            f"{where}: its TLS certificate is not accepted, or it does not speak TLS; SSL_CERT_FILE is "
            f"{os.environ.get('SSL_CERT_FILE') or 'not set'}: set it to a PEM file with the certificate of the "
            "authority that signed the server's, or write http:// for a plain server"
        )
    if _TRANSPORT.search(words):
        cause = next((cause for pattern, cause in _CAUSES if pattern.search(words)), "the connection failed")
        return StoreUnavailable(
            f"{where} does not answer ({cause}); check that it is reachable from here and that its address is right",
            retry_after=5.0,
        )
    if "ETag" in words:
        return StoreUnavailable(
            f"{where}: the response has no ETag, which conditional writes need; use a store, or a proxy in front of "
            "it, that sends one"
        )
    return StoreUnavailable(f"{where}: the client for {cloud.name} failed; check its settings")
