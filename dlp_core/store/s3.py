"""S3 as a store. `dlp_core.store.s3_errors` maps the errors of boto3.

Configure it as boto3 documents: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION`,
and the usual credentials chain (variables, profile, web identity, container or instance role), before which
`s3_credentials` puts files that may change. MinIO, SeaweedFS and the like need an endpoint and no other setting; stores
that want the bucket in the host name also need `addressing_style = virtual` in the profile's `s3` section.

Conditional writes are S3's own (`If-None-Match: *`, `If-Match`). A server too old for them ignores the
conditions; `dlp_core.bank.pointer` detects that before it moves a pointer, and refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from dlp_core.errors import InvalidRequest, StoreUnavailable
from dlp_core.store.disk import CHUNK_BYTES, save_stream
from dlp_core.store.protocol import ObjectInfo, StoredObject, check_key, check_prefix, conflict, one_line
from dlp_core.store.s3_credentials import read_files_first
from dlp_core.store.s3_errors import location, map_error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")

CONNECT_SECONDS = 3.0
READ_SECONDS = 20.0
"""Maximum silence on an open connection, not the duration of a download."""
ATTEMPTS = 3

_SETTINGS = Config(
    connect_timeout=CONNECT_SECONDS,
    read_timeout=READ_SECONDS,
    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    max_pool_connections=32,
    user_agent_extra="dlp-serve",
)
_CUT_OFF = (HTTPClientError, IncompleteReadError)


def make_client(settings: Config | None = None) -> S3Client:
    """A boto3 client from the standard variables; `settings` overrides timeouts and retries.

    Raises StoreUnavailable if the configuration is invalid: an unknown profile, a malformed endpoint, an empty file.
    """
    config = _SETTINGS.merge(settings) if settings else _SETTINGS
    try:
        # Its own session: threads that create clients must not share boto3's default session.
        session = boto3.session.Session()
        read_files_first(session._session.get_component("credential_provider"))
        client: S3Client = session.client("s3", config=config)
        if _is_aws(client.meta.endpoint_url):
            return client
        client.close()
        client = session.client("s3", config=config.merge(_elsewhere(session)))
        return client
    except InvalidRequest as error:
        raise StoreUnavailable(f"invalid S3 settings: {error.message}") from error
    except (BotoCoreError, ValueError) as error:
        raise StoreUnavailable(
            f"invalid S3 settings: {one_line(error)}; check AWS_ENDPOINT_URL_S3, AWS_PROFILE and AWS_REGION"
        ) from error


def _elsewhere(session: boto3.session.Session) -> Config:
    """Settings for stores that are not AWS, as far as the user's own configuration does not say otherwise.

    bucket.minio:9000 does not resolve: only AWS is known to have a host name per bucket. And boto3's default checksums
    come in a framing that other stores refuse, or store as if it were content.
    """
    profile = session._session.get_scoped_config()
    chosen: dict[str, Any] = {}
    if "addressing_style" not in (profile.get("s3") or {}):
        chosen["s3"] = {"addressing_style": "path"}
    for setting in ("request_checksum_calculation", "response_checksum_validation"):
        if setting not in profile and f"AWS_{setting.upper()}" not in os.environ:
            chosen[setting] = "when_required"
    return Config(**chosen)


class S3Store:
    """Objects under one prefix of one bucket. `prefix` is empty or ends in '/'."""

    def __init__(self, bucket: str, prefix: str = "", *, client: S3Client | None = None) -> None:
        self._bucket = bucket
        self._prefix = check_prefix(prefix)
        self._client = client or make_client()

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def get(self, key: str) -> StoredObject:
        return self._read(key, lambda response: StoredObject(response["Body"].read(), self._etag(key, response)))

    def get_if_changed(self, key: str, etag: str) -> StoredObject | None:
        path = self._path(key)
        with self._errors(key):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=path, IfNoneMatch=etag)
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == HTTPStatus.NOT_MODIFIED:
                    return None
                raise
            with closing(response["Body"]) as body:
                return StoredObject(body.read(), self._etag(key, response))

    def download(self, key: str, target: Path, *, size: int, sha256: str) -> None:
        source = f"object {key!r} in {self.uri}"

        def save(response: GetObjectOutputTypeDef) -> None:
            chunks = response["Body"].iter_chunks(CHUNK_BYTES)
            save_stream(chunks, target, source=source, size=size, sha256=sha256)

        self._read(key, save)

    def put(self, key: str, body: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        with self._errors(key, conditional=if_none_match or if_match is not None), _readable(body) as content:
            if if_none_match:
                response = self._client.put_object(Bucket=self._bucket, Key=path, Body=content, IfNoneMatch="*")
            elif if_match is not None:
                response = self._client.put_object(Bucket=self._bucket, Key=path, Body=content, IfMatch=if_match)
            else:
                response = self._client.put_object(Bucket=self._bucket, Key=path, Body=content)
        return response.get("ETag") or self._etag_of_written(key, body)

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._errors(key):
            response = self._client.head_object(Bucket=self._bucket, Key=path)
        return ObjectInfo(key, response["ContentLength"], self._etag(key, response))

    def list(self, prefix: str = "") -> Sequence[ObjectInfo]:
        start = self._prefix + check_prefix(prefix)
        objects = []
        with self._errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # a console's marker for an empty folder
                        key = item["Key"].removeprefix(self._prefix)
                        objects.append(ObjectInfo(key, item["Size"], self._etag(key, item)))
        return sorted(objects, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=path)

    def _read(self, key: str, consume: Callable[[GetObjectOutputTypeDef], T]) -> T:
        """Pass the response for an object to `consume`. botocore retries requests, not bodies: a stream that is cut off
        starts again here."""
        path = self._path(key)
        attempt = 1
        while True:
            with self._errors(key):
                response = self._client.get_object(Bucket=self._bucket, Key=path)
                try:
                    with closing(response["Body"]):
                        return consume(response)
                except _CUT_OFF:
                    if attempt == ATTEMPTS:
                        raise
            attempt += 1

    def _etag(self, key: str, response: Mapping[str, Any]) -> str:
        """The etag in a response. Raises StoreUnavailable: without one nothing can be written conditionally."""
        etag = response.get("ETag")
        if not etag:
            where = location(key, self.uri, self._client.meta.endpoint_url)
            raise StoreUnavailable(
                f"{where}: the response has no ETag, which conditional writes need; use a store, or a proxy in front "
                "of it, that sends one"
            )
        return str(etag)

    def _etag_of_written(self, key: str, body: bytes | Path) -> str:
        """The etag of an object just written, for the stores that do not send it with the response to PUT.

        Raises Conflict if another writer has replaced the object since.
        """
        if isinstance(body, Path):
            return self.head(key).etag
        stored = self.get(key)
        if stored.data != body:
            raise conflict(key, self.uri, created=False)
        return stored.etag

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _errors(self, key: str, *, conditional: bool = False) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            client = self._client.meta
            raise map_error(
                error,
                key=key,
                uri=self.uri,
                endpoint=client.endpoint_url,
                conditional=conditional,
                checksums=str(getattr(client.config, "request_checksum_calculation", "")).lower(),
            ) from error


@contextmanager
def _readable(body: bytes | Path) -> Iterator[bytes | IO[bytes]]:
    if isinstance(body, bytes):
        yield body
    else:
        with body.open("rb") as file:
            yield file


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
