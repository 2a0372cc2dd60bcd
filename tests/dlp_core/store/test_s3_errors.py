"""What the errors of an S3 server say: the store, the cause and what to do, in one line and without a password."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.config import Config

from dlp_core.errors import Conflict, DLPError, NotFound, StoreUnavailable
from dlp_core.store.opening import open_store
from dlp_core.store.s3 import S3Store, make_client
from dlp_core.store.s3_errors import map_error
from tests.support.certificates import write_certificates
from tests.support.http_server import QuietHandler, serving

ONCE = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})


def answer(status: int, code: str = "Code") -> boto.ClientError:
    response: Any = {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "GetObject")


@pytest.mark.parametrize(
    ("error", "conditional", "expected", "says"),
    [
        (answer(404, "NoSuchKey"), False, NotFound, "does not exist"),
        (answer(404, "404"), False, NotFound, "does not exist"),  # what HEAD says
        (answer(404, "NoSuchKey"), True, Conflict, "another writer"),  # AWS: If-Match on a missing object
        (answer(404, "NoSuchBucket"), False, StoreUnavailable, "create it"),
        (answer(404, "NoSuchBucket"), True, StoreUnavailable, "create it"),
        (answer(412, "PreconditionFailed"), True, Conflict, "read it again"),
        (answer(409, "ConditionalRequestConflict"), True, Conflict, "read it again"),
        (answer(403, "AccessDenied"), False, StoreUnavailable, "s3:ListBucket"),
        (answer(401, "Unauthorized"), False, StoreUnavailable, "credentials"),
        (answer(400, "ExpiredToken"), False, StoreUnavailable, "ExpiredToken"),
        (answer(301, "PermanentRedirect"), False, StoreUnavailable, "AWS_REGION"),
        (answer(500, "InternalError"), False, StoreUnavailable, "HTTP 500"),
        (answer(503, "SlowDown"), True, StoreUnavailable, "limits the rate"),
        (answer(429, "TooManyRequests"), False, StoreUnavailable, "limits the rate"),
        (answer(501, "NotImplemented"), False, StoreUnavailable, "does not implement"),
        (answer(411, "MissingContentLength"), False, StoreUnavailable, "Content-Length"),
        (answer(501, "NotImplemented"), True, StoreUnavailable, "If-None-Match"),
        (boto.EndpointConnectionError(endpoint_url="http://e"), False, StoreUnavailable, "does not answer"),
        (boto.ConnectTimeoutError(endpoint_url="http://e"), False, StoreUnavailable, "does not answer"),
        (boto.ReadTimeoutError(endpoint_url="http://e"), False, StoreUnavailable, "does not answer"),
        (boto.ConnectionClosedError(endpoint_url="http://e"), False, StoreUnavailable, "does not answer"),
        (boto.SSLError(endpoint_url="http://e", error="x"), False, StoreUnavailable, "AWS_CA_BUNDLE is not set"),
        (boto.ResponseStreamingError(error="x"), False, StoreUnavailable, "does not answer"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), False, StoreUnavailable, "does not answer"),
        (boto.NoCredentialsError(), False, StoreUnavailable, "AWS_ACCESS_KEY_ID"),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), False, StoreUnavailable, "AWS_ACCESS_KEY_ID"),
        (boto.ParamValidationError(report="x"), False, StoreUnavailable, "AWS_"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_error_of_botocore_is_mapped(
    error: Any, conditional: bool, expected: type[Exception], says: str, aws_free: None
) -> None:
    mapped = map_error(error, key="a/b", uri="s3://bank/", endpoint="http://e:1", conditional=conditional)
    assert type(mapped) is expected
    assert says in mapped.message
    assert all(part in mapped.message for part in ("a/b", "s3://bank/", "http://e:1"))
    assert "\n" not in mapped.message


@pytest.fixture
def credentials(aws_free: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@contextmanager
def server(monkeypatch: pytest.MonkeyPatch, answer: Callable[[QuietHandler, bytes], None]) -> Iterator[S3Store]:
    """A store on a server that reads each request and answers as told."""

    class Handler(QuietHandler):
        def answer(self, body: bytes) -> None:
            answer(self, body)

    with serving(Handler) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address}")
        yield S3Store("bucket", "p/", client=make_client(ONCE))


def refusing(status: int, code: str) -> Callable[[QuietHandler, bytes], None]:
    body = f"<Error><Code>{code}</Code><Message>told\n you</Message></Error>".encode()
    return lambda handler, _: handler.reply(status, body)


def put(store: S3Store, **conditions: Any) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as refused:
        store.put("a", b"x", **conditions)
    assert "\n" not in refused.value.message
    assert "s3://bucket/p/" in refused.value.message
    return refused.value


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (411, "MissingContentLength")])
def test_a_store_without_trailing_checksums_says_what_to_set(
    credentials: None, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    with server(monkeypatch, refusing(status, code)) as store:
        for conditions in ({}, {"if_none_match": True}):
            refused = put(store, **conditions)
            assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in refused.message
            assert refused.retry_after is None, "no retry helps"


def test_with_nothing_to_set_nothing_is_proposed(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(monkeypatch, refusing(501, "NotImplemented")) as store:
        assert "conditional writes" in put(store, if_none_match=True).message
        assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in put(store).message
        assert put(store).retry_after is None


def test_a_store_that_slows_clients_down_is_named_so(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(monkeypatch, refusing(503, "SlowDown")) as store:
        refused = put(store)
    assert "limits the rate of requests (SlowDown: told you)" in refused.message
    assert refused.retry_after


@contextmanager
def without_etag_on_put(
    monkeypatch: pytest.MonkeyPatch, *, overwritten: bytes | None = None, etag: str | None = '"e"'
) -> Iterator[S3Store]:
    objects: dict[str, bytes] = {}

    def answer(handler: QuietHandler, body: bytes) -> None:
        if handler.command == "PUT":
            objects[handler.path] = body if overwritten is None else overwritten
            handler.reply(200)
        else:
            handler.reply(200, objects[handler.path], **({} if etag is None else {"ETag": etag}))

    with server(monkeypatch, answer) as store:
        yield store


def test_a_put_that_is_answered_without_an_etag_gets_it_from_the_object(
    credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with without_etag_on_put(monkeypatch) as store:
        assert store.put("a", b"one") == store.put("b", tmp_path / "file") == '"e"'


def test_another_writers_etag_is_not_taken_for_ones_own(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        without_etag_on_put(monkeypatch, overwritten=b"two") as store,
        pytest.raises(Conflict, match="another writer"),
    ):
        store.put("a", b"one", if_none_match=True)


def test_a_store_without_etags_is_refused(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_etag_on_put(monkeypatch, etag=None) as store:
        assert "no ETag" in put(store).message


def test_a_certificate_of_an_unknown_authority(
    credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, certificate = write_certificates(tmp_path)
    with serving(QuietHandler, certificate=certificate) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{address}")

        def says() -> DLPError:
            with pytest.raises(DLPError) as refused:
                S3Store("bucket", client=make_client(ONCE)).get("a")
            return refused.value

        assert "CERTIFICATE_VERIFY_FAILED" in says().message
        assert "AWS_CA_BUNDLE is not set: set it to a PEM file" in says().message
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
        assert f"(No such file or directory); AWS_CA_BUNDLE is {tmp_path / 'none.pem'}" in says().message.replace(
            "[Errno 2] ", ""
        )
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert isinstance(says(), NotFound)


def test_tls_to_a_plain_server_says_so(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(QuietHandler) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{address}")
        with pytest.raises(StoreUnavailable, match="write http:// in AWS_ENDPOINT_URL_S3"):
            S3Store("bucket", client=make_client(ONCE)).get("a")


def test_a_password_in_an_endpoint_is_not_repeated(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:secret@127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"at http://127\.0\.0\.1:9 does not") as refused:
        open_store("s3://bucket/").get("a")
    assert "secret" not in refused.value.message
