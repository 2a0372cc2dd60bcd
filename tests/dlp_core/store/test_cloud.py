"""What only the stores of clouds can get wrong: their settings, their errors, conditions on generations, streams."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlp_core.errors import Conflict, DLPError, NotFound, StoreUnavailable
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.conftest import BUCKET
from tests.support.certificates import write_certificates
from tests.support.fake_azure import ACCOUNT, KEY, FakeAzure, connection_string
from tests.support.fake_blobs import Blobs, CloudHandler, serving_blobs
from tests.support.fake_gcs import FakeGcs
from tests.support.http_server import QuietHandler, serving

pytest.importorskip("obstore", reason="the clouds extra is not installed")

from dlp_core.store import cloud_settings
from dlp_core.store.cloud_settings import AZURE, GOOGLE

FAKES = {"gs": FakeGcs, "az": FakeAzure}
SECRET = "c2VjcmV0"
PATIENCE_S = (1 + cloud_settings.RETRIES) * (cloud_settings.CONNECT_SECONDS + cloud_settings.READ_SECONDS)


@pytest.fixture(autouse=True)
def impatient(cloud_free: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CONNECT_SECONDS", 0.5), ("READ_SECONDS", 0.5), ("RETRIES", 1), ("BACKOFF_SECONDS", 0.01)):
        monkeypatch.setattr(cloud_settings, name, value)


def point(monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str) -> None:
    """The usual variables for an emulator at this URL."""
    if scheme == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    else:
        text = connection_string("?").replace("http://?", endpoint)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)


@pytest.fixture(params=["gs", "az"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fake(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    with serving_blobs(FAKES[scheme], BUCKET) as (address, blobs):
        point(monkeypatch, scheme, f"http://{address}")
        yield blobs


@pytest.fixture
def store(scheme: str, fake: Blobs) -> AdapterStore:
    return open_store(f"{scheme}://{BUCKET}/p/")


def refused(call: Callable[[], object], expected: type[DLPError] = StoreUnavailable) -> DLPError:
    """The error of a call: one line that names the place and keeps secrets."""
    with pytest.raises(DLPError) as caught:
        call()
    assert type(caught.value) is expected, caught.value
    assert "\n" not in caught.value.message
    assert SECRET not in caught.value.message
    return caught.value


def every_call(store: AdapterStore, tmp_path: Path) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a"),
        lambda: store.get_if_changed("a", "0"),
        lambda: store.head("a"),
        lambda: store.download("a", tmp_path / "target", size=1, sha256="0" * 64),
        lambda: store.put("a", b"x"),
        lambda: store.put("a", b"x", if_none_match=True),
        lambda: store.put("a", b"x", if_match="0"),
        store.list,
        lambda: store.delete("a"),
    ]


# -- conditions and listings --------------------------------------------------------------------


def test_a_write_on_condition_is_of_the_generation_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer may have put the same bytes, and so the same etag, between the look and the write."""
    with serving_blobs(FakeGcs, BUCKET) as (address, blobs):
        point(monkeypatch, "gs", f"http://{address}")
        store = open_store(f"gs://{BUCKET}/")
        etag = store.put("a", b"one")

        def rival(handler: CloudHandler) -> bool:
            if handler.command == "PUT":
                blobs.fault = None
                blobs.write("a", b"one")
            return False

        blobs.fault = rival
        with pytest.raises(Conflict, match="another writer"):
            store.put("a", b"two", if_match=etag)
        assert store.get("a").data == b"one"


def test_markers_of_consoles_for_folders_are_no_objects(store: AdapterStore, fake: Blobs) -> None:
    for key in ("p/", "p/adapters/", "p/adapters/x/"):
        fake.write(key, b"")
    for key in ("adapters/x/weights", "adapters/empty", "adapters/y"):
        store.put(key, b"" if key.endswith("empty") else b"x")
    keys = [info.key for info in store.list()]
    assert keys == ["adapters/empty", "adapters/x/weights", "adapters/y"]


def test_a_name_that_no_key_can_have_is_reported(store: AdapterStore, fake: Blobs) -> None:
    fake.write("p/a//b", b"x")
    assert "segment" in refused(store.list).message


def test_deleting_needs_the_bucket(scheme: str, fake: Blobs) -> None:
    assert "does not exist; create it" in refused(lambda: open_store(f"{scheme}://other/").delete("a")).message


# -- errors -------------------------------------------------------------------------------------


def test_no_such_bucket(scheme: str, fake: Blobs) -> None:
    store = open_store(f"{scheme}://no-such-bucket/")
    for call in (lambda: store.get("a"), lambda: store.put("a", b"x"), store.list):
        assert {"gs": "bucket", "az": "container"}[scheme] + " does not exist" in refused(call).message


def answering(status: int, code: str) -> Callable[[CloudHandler], bool]:
    def fault(handler: CloudHandler) -> bool:
        handler.refuse(status, code, f"key {SECRET}")
        return True

    return fault


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "InvalidAuthenticationInfo", "access denied (HTTP 401 InvalidAuthenticationInfo)"),
        (403, "AuthenticationFailed", "access denied (HTTP 403 AuthenticationFailed)"),
        (409, "ContainerBeingDeleted", "refused (HTTP 409 ContainerBeingDeleted)"),
        (412, "LeaseIdMissing", "refused (HTTP 412 LeaseIdMissing)"),
        (429, "SlowDown", "limits the rate of requests (HTTP 429 SlowDown)"),
        (503, "ServerBusy", "limits the rate of requests (HTTP 503 ServerBusy)"),
        (500, "InternalError", "HTTP 500 InternalError; retry later"),
        (501, "NotImplemented", "refused (HTTP 501 NotImplemented)"),
        (400, "InvalidArgument", "refused (HTTP 400 InvalidArgument)"),
    ],
)
def test_what_a_cloud_refuses(store: AdapterStore, fake: Blobs, status: int, code: str, says: str) -> None:
    fake.fault = answering(status, code)
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", b"x"),
        lambda: store.put("a", b"x", if_none_match=True),
        store.list,
    ):
        error = refused(call)
        assert says in error.message
        assert store.uri in error.message
        assert (error.retry_after is not None) == (status in (429, 500, 503))


def test_access_denied_says_what_to_grant(scheme: str, store: AdapterStore, fake: Blobs) -> None:
    fake.fault = answering(403, "AccessDenied")
    cloud = {"gs": GOOGLE, "az": AZURE}[scheme]
    assert cloud.roles in refused(store.list).message
    assert cloud.credentials in refused(store.list).message


def test_a_request_that_fails_once_is_sent_again(store: AdapterStore, fake: Blobs) -> None:
    def once(handler: CloudHandler) -> bool:
        fake.fault = None
        handler.refuse(503, "ServiceUnavailable")
        return True

    fake.fault = once
    store.put("a", b"x")
    assert store.get("a").data == b"x"


def test_nobody_there(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    point(monkeypatch, scheme, endpoint)
    for call in every_call(open_store(f"{scheme}://{BUCKET}/"), tmp_path):
        error = refused(call)
        assert endpoint in error.message
        assert "does not answer (connection refused)" in error.message


def test_nobody_answers(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point(monkeypatch, scheme, f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = open_store(f"{scheme}://{BUCKET}/")
        for call in (lambda: store.get("a"), lambda: store.put("a", b"x")):
            assert "does not answer (it was silent for too long)" in refused(call).message


def test_patience_ends_within_two_minutes() -> None:
    assert PATIENCE_S < 120


def test_a_certificate_of_an_unknown_authority(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, certificate = write_certificates(tmp_path)
    with serving(QuietHandler, certificate=certificate) as address:
        point(monkeypatch, scheme, f"https://{address}")

        def get() -> object:
            return open_store(f"{scheme}://{BUCKET}/").get("a")

        assert "SSL_CERT_FILE is not set: set it to a PEM file" in refused(get).message
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        refused(get, NotFound)


def test_tls_to_a_plain_server_says_so(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(QuietHandler) as address:
        point(monkeypatch, scheme, f"https://{address}")
        assert "write http://" in refused(lambda: open_store(f"{scheme}://{BUCKET}/").get("a")).message


def test_a_response_without_an_etag(scheme: str, store: AdapterStore, fake: Blobs) -> None:
    def bare(handler: CloudHandler) -> bool:
        handler.reply(200)
        return True

    fake.fault = bare
    assert "no ETag" in refused(lambda: store.put("a", b"x")).message


@contextmanager
def cutting(fake: Blobs, cuts: int) -> Iterator[None]:
    """The next `cuts` bodies end in the middle."""
    left = cuts

    def cut(handler: CloudHandler) -> bool:
        nonlocal left
        if handler.command != "GET" or not left:
            return False
        left -= 1
        write = handler.wfile.write
        sent: list[bytes] = []
        handler.wfile.write = sent.append  # type: ignore[assignment]
        with fake.lock:
            handler.dispatch(b"")
        handler.wfile.write = write  # type: ignore[method-assign]
        *head, body = sent
        for piece in (*head, body[: len(body) // 2]):
            write(piece)
        handler.close_connection = True
        return True

    fake.fault = cut
    yield
    fake.fault = None


def test_a_stream_that_is_cut_off_goes_on_where_it_ended(store: AdapterStore, fake: Blobs, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    store.put("a", data)
    digest = hashlib.sha256(data).hexdigest()
    with cutting(fake, 1):
        store.download("a", tmp_path / "target", size=len(data), sha256=digest)
    assert (tmp_path / "target").read_bytes() == data


def test_a_stream_that_is_always_cut_off_is_unavailable(store: AdapterStore, fake: Blobs, tmp_path: Path) -> None:
    store.put("a", b"0123456789")
    (tmp_path / "out").mkdir()
    with cutting(fake, 99):
        for call in (
            lambda: store.download("a", tmp_path / "out" / "target", size=10, sha256="0" * 64),
            lambda: store.get("a"),
        ):
            assert "does not answer (it hung up)" in refused(call).message
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_of_a_process_that_has_used_a_store_is_told_so(scheme: str, store: AdapterStore) -> None:
    store.put("a", b"x")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.get("a")
        except StoreUnavailable as error:
            os.write(write, error.message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"was forked from one that used" in os.read(read, 1000)
    os.close(read)
    os.close(write)
    assert store.get("a").data == b"x"


# -- settings -----------------------------------------------------------------------------------


def test_what_is_not_installed_says_how_to_install_it(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("obstore", "dlp_core.store.cloud"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    message = refused(lambda: open_store(f"{scheme}://{BUCKET}/")).message
    assert message == f"{scheme}:// needs obstore, which is not installed; run: pip install 'dlp-serve[clouds]'"


def test_an_emulator_of_google_may_be_named_without_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_blobs(FakeGcs, BUCKET) as (address, _):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        assert open_store(f"gs://{BUCKET}/").list() == []


@pytest.mark.parametrize(
    "variables",
    [
        {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY},
        {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY},
    ],
    ids=["obstore's names", "those of az"],
)
def test_an_account_and_its_key(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    with serving_blobs(FakeAzure, BUCKET) as (address, _):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://{address}/{ACCOUNT}")
        assert open_store(f"az://{BUCKET}/").list() == []


def test_the_endpoints_of_the_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GOOGLE.connect(BUCKET)[1] == "https://storage.googleapis.com"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    assert AZURE.connect(BUCKET)[1] == "https://mine.blob.core.windows.net"
    text = f"DefaultEndpointsProtocol=https;AccountName=mine;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    assert AZURE.connect(BUCKET)[1] == "https://mine.blob.core.chinacloudapi.cn"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    assert AZURE.connect(BUCKET)[1] == "http://127.0.0.1:10000"
    text = f"BlobEndpoint=https://mine.example.com;AccountName=mine;SharedAccessSignature=sv=1&sig={SECRET}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    assert AZURE.connect(BUCKET)[1] == "https://mine.example.com"


@pytest.mark.parametrize(
    ("scheme", "variables", "says"),
    [
        ("gs", {"STORAGE_EMULATOR_HOST": "ftp://host"}, "the endpoint in STORAGE_EMULATOR_HOST"),
        ("gs", {"STORAGE_EMULATOR_HOST": f"http://u:{SECRET}@h"}, "the endpoint in STORAGE_EMULATOR_HOST"),
        ("az", {}, "set AZURE_STORAGE_ACCOUNT_NAME"),
        ("az", {"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={SECRET}"}, "names no account"),
        ("az", {"AZURE_STORAGE_CONNECTION_STRING": SECRET}, "names no account"),
        ("az", {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_ENDPOINT": "no url"}, "in AZURE_STORAGE_ENDPOINT"),
        ("az", {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": f"{SECRET}!"}, "no usable credentials; set AZURE"),
    ],
)
def test_settings_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, scheme: str, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert says in refused(lambda: open_store(f"{scheme}://{BUCKET}/")).message


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (None, "no usable credentials; set GOOGLE_APPLICATION_CREDENTIALS"),
        ({"type": "external_account", "secret": SECRET}, "credentials of the kind external_account cannot be used"),
        ({"type": "service_account", "private_key": SECRET, "private_key_id": "", "client_email": ""}, "no usable"),
        ({"private_key": SECRET}, "no usable"),
    ],
)
def test_credentials_of_google_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Any, says: str
) -> None:
    path = tmp_path / "key.json"
    if file is not None:
        path.write_text(json.dumps(file))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert says in refused(lambda: open_store(f"gs://{BUCKET}/")).message


def test_no_credentials(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    store = open_store(f"{scheme}://{BUCKET}/")
    for call in (lambda: store.get("a"), lambda: store.put("a", b"x"), store.list):
        assert "there are no usable credentials; set" in refused(call).message
