"""One contract, every kind of store; then what only S3 or only the folder can get wrong."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config

from dlp_core.errors import Conflict, DigestMismatch, InvalidRequest, NotFound, StoreUnavailable
from dlp_core.store.folder import FolderStore
from dlp_core.store.memory import MemoryStore
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.s3 import S3Store, make_client
from tests.support.http_server import QuietHandler, serving
from tests.support.stores import KINDS, SHARED, empty_place

BAD_KEYS = [
    "",
    "/etc/passwd",
    "a//b",
    "a/",
    "../x",
    "a/../../x",
    "a/./b",
    "a\\b",
    "a\nb",
    "a\x00b",
    ".hidden",
    "x" * 1025,
]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    return open_store(empty_place(request.param, request, tmp_path))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_put_is_read_back_with_its_etag(store: AdapterStore) -> None:
    etag = store.put("a/b.json", b"one")

    found = store.get("a/b.json")
    assert (found.data, found.etag) == (b"one", etag)
    head = store.head("a/b.json")
    assert (head.key, head.size, head.etag) == ("a/b.json", 3, etag)


def test_another_content_has_another_etag(store: AdapterStore) -> None:
    assert store.put("a", b"one") != store.put("a", b"two")


def test_an_empty_object_is_an_object(store: AdapterStore) -> None:
    store.put("empty", b"")
    assert store.get("empty").data == b""


def test_a_file_is_uploaded_and_downloaded_whole(store: AdapterStore, tmp_path: Path) -> None:
    data = os.urandom(11 * 1024 * 1024 + 17)  # several parts, where uploads have parts
    (tmp_path / "source").write_bytes(data)
    store.put("big", tmp_path / "source")
    (tmp_path / "out").mkdir()

    store.download("big", tmp_path / "out" / "target", size=len(data), sha256=sha256(data))

    assert (tmp_path / "out" / "target").read_bytes() == data
    assert os.listdir(tmp_path / "out") == ["target"]


@pytest.mark.parametrize(
    ("promised", "why"),
    [(b"0123456789", "another content"), (b"longer than it", "truncated"), (b"short", "longer")],
)
def test_bytes_that_are_not_as_promised_leave_nothing_behind(
    store: AdapterStore, tmp_path: Path, promised: bytes, why: str
) -> None:
    store.put("adapters/x/weights", b"9876543210")
    folder = tmp_path / "out"
    folder.mkdir()

    with pytest.raises(DigestMismatch, match="adapters/x/weights"):
        store.download("adapters/x/weights", folder / "target", size=len(promised), sha256=sha256(promised))

    assert os.listdir(folder) == []


def test_a_digest_mismatch_names_what_was_expected_and_found(store: AdapterStore, tmp_path: Path) -> None:
    store.put("a", b"tampered")
    with pytest.raises(DigestMismatch) as error:
        store.download("a", tmp_path / "target", size=8, sha256=sha256(b"original"))
    assert sha256(b"original") in error.value.message
    assert sha256(b"tampered") in error.value.message


def test_a_failed_download_keeps_the_file_that_was_there(store: AdapterStore, tmp_path: Path) -> None:
    store.put("a", b"tampered")
    (tmp_path / "target").write_bytes(b"good")
    with pytest.raises(DigestMismatch):
        store.download("a", tmp_path / "target", size=8, sha256=sha256(b"original"))
    assert (tmp_path / "target").read_bytes() == b"good"


def test_reading_what_is_not_there(store: AdapterStore, tmp_path: Path) -> None:
    store.put("folder/file", b"x")
    for key in ("nothing", "folder", "folder/file/below"):
        with pytest.raises(NotFound, match=key):
            store.get(key)
        with pytest.raises(NotFound, match=key):
            store.head(key)
        with pytest.raises(NotFound, match=key):
            store.download(key, tmp_path / "target", size=1, sha256=sha256(b"x"))


def test_create_only_creates_once(store: AdapterStore) -> None:
    store.put("a", b"first", if_none_match=True)
    with pytest.raises(Conflict, match="a"):
        store.put("a", b"second", if_none_match=True)
    assert store.get("a").data == b"first"


def test_replace_only_if_unchanged(store: AdapterStore) -> None:
    first = store.put("a", b"first")
    store.put("a", b"second", if_match=first)
    with pytest.raises(Conflict, match="a"):
        store.put("a", b"third", if_match=first)
    assert store.get("a").data == b"second"


def test_replacing_what_is_gone_is_a_conflict(store: AdapterStore) -> None:
    etag = store.put("a", b"first")
    store.delete("a")
    with pytest.raises(Conflict):
        store.put("a", b"second", if_match=etag)


@pytest.mark.parametrize("create", [True, False])
def test_of_many_conditional_writers_exactly_one_wins(store: AdapterStore, create: bool) -> None:
    for round_ in range(3):
        key = f"race/{round_}"
        etag = None if create else store.put(key, b"start")
        barrier = threading.Barrier(4)

        def write(number: int, key: str = key, etag: str | None = etag, barrier: Any = barrier) -> bool:
            barrier.wait()
            try:
                store.put(key, str(number).encode(), if_none_match=create, if_match=etag)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(write, range(4)))
        assert won.count(True) == 1
        assert store.get(key).data == str(won.index(True)).encode()


def test_list_is_by_prefix_and_sorted(store: AdapterStore) -> None:
    assert store.list() == []
    for key in ("b/2", "b/1", "a/1", "bb/1", "top"):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == ["a/1", "b/1", "b/2", "bb/1", "top"]
    assert [(info.key, info.size) for info in store.list("b/")] == [("b/1", 3), ("b/2", 3)]
    assert store.list("b/")[0] == store.head("b/1")
    assert store.list("none/") == []
    with pytest.raises(InvalidRequest):
        store.list("b")


@pytest.mark.parametrize("kind", SHARED)
def test_list_sees_more_than_one_page(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = open_store(empty_place(kind, request, tmp_path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"many/{n:04}", b""), range(1005)))
    assert len(store.list("many/")) == 1005


@pytest.mark.parametrize("key", ["a b", "ä/ö", "50%25 off", "x#y?z=1&w", "a+b~c*d'e(f)", "{}[]|^`<>", "x" * 200])
def test_a_key_may_have_any_letter_that_is_allowed(store: AdapterStore, key: str) -> None:
    etag = store.put(key, b"x")
    assert [(info.key, info.etag) for info in store.list()] == [(key, etag)]
    store.put(key, b"y", if_match=etag)
    assert store.get(key).data == b"y"
    store.delete(key)
    assert store.list() == []


def test_an_unchanged_object_is_not_read_again(store: AdapterStore) -> None:
    with pytest.raises(NotFound):
        store.get_if_changed("a", "0")
    etag = store.put("a", b"one")
    assert store.get_if_changed("a", etag) is None
    changed = store.put("a", b"two")
    stored = store.get_if_changed("a", etag)
    assert stored is not None
    assert (stored.data, stored.etag) == (b"two", changed)


def test_a_file_that_cannot_be_read_or_written_is_no_missing_object(store: AdapterStore, tmp_path: Path) -> None:
    store.put("a", b"x")
    with pytest.raises(OSError, match="No such file"):
        store.download("a", tmp_path / "none" / "target", size=1, sha256=sha256(b"x"))
    if not isinstance(store, FolderStore):  # which maps errors of its own disk
        with pytest.raises(OSError, match="No such file"):
            store.put("b", tmp_path / "none")


def test_delete_forgets_and_may_be_repeated(store: AdapterStore) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(NotFound):
        store.get("a/b")
    assert store.list() == []


def test_a_key_that_could_leave_the_root_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    for key in BAD_KEYS:
        for call in (
            partial(store.get, key),
            partial(store.head, key),
            partial(store.put, key, b"x"),
            partial(store.delete, key),
            partial(store.download, key, tmp_path / "t", size=1, sha256=sha256(b"x")),
        ):
            with pytest.raises(InvalidRequest, match="key"):
                call()
    assert (tmp_path / "x").read_bytes() == b"outside"


def test_the_uri_opens_the_same_place_again(store: AdapterStore) -> None:
    store.put("a", b"x")
    assert open_store(store.uri).get("a").data == b"x"


@pytest.mark.parametrize("kind", SHARED)
def test_two_prefixes_do_not_see_each_other(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = empty_place(kind, request, tmp_path).rstrip("/")
    open_store(f"{place}/one/").put("a", b"1")
    assert open_store(f"{place}/one").get("a").data == b"1", "the trailing slash may be left out"
    assert open_store(f"{place}/on").list() == []


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "http://host/x",
        "s3://",
        "s3://B!/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "gs://",
        "gs://B!/x",
        "gs://bucket/../x",
        "az://",
        "az://with.dot/x",
        "az://two--dashes/x",
        "az://bucket/a//b",
        "abfs://bucket/x",
        "memory://",
        "file://host/x",
        "a\nb",
    ],
)
def test_a_uri_that_names_no_store_is_refused(uri: str, aws_free: None) -> None:
    with pytest.raises(InvalidRequest, match=r"URI|key"):
        open_store(uri)


def test_folder_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("some bank", str(tmp_path / "some bank"), (tmp_path / "some bank").as_uri()):
        assert open_store(uri).uri == str(tmp_path / "some bank")


# -- the folder ---------------------------------------------------------------------------------


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    store = FolderStore(root)

    for key in ("link/secret", "file"):
        with pytest.raises(InvalidRequest, match="symbolic link"):
            store.get(key)
    with pytest.raises(InvalidRequest, match="symbolic link"):
        store.put("link/new", b"x")
    assert store.list() == []
    assert os.listdir(outside) == ["secret"]


def test_conditions_hold_between_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from dlp_core.store.opening import open_store; from dlp_core.errors import Conflict\n"
        "won = 0\n"
        "for n in range(50):\n"
        "    try: open_store(sys.argv[1]).put(f'k{n}', b'x', if_none_match=True); won += 1\n"
        "    except Conflict: pass\n"
        "print(won)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sum(int(run.communicate()[0]) for run in runs) == 50


def test_a_writer_that_was_killed_leaves_no_object(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / ".dlp").mkdir()
    (tmp_path / ".dlp" / "0123.part").write_bytes(b"half")
    assert store.list() == []


def test_an_unwritable_folder_is_unavailable_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="permissions"):
        FolderStore(tmp_path / "file").put("a", b"x")


# -- memory -------------------------------------------------------------------------------------


def test_a_memory_name_is_one_place(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    open_store(f"memory://{name}").put("a", b"x")
    assert open_store(f"memory://{name}").get("a").data == b"x"
    assert MemoryStore(name).list() == []


# -- S3 -----------------------------------------------------------------------------------------

QUICK = Config(connect_timeout=0.3, read_timeout=0.3, retries={"total_max_attempts": 1})


def test_no_such_bucket(s3: str) -> None:
    store = S3Store("no-such-bucket")
    for call in (lambda: store.get("a"), lambda: store.put("a", b"x"), store.list):
        with pytest.raises(StoreUnavailable, match="bucket does not exist") as error:
            call()
        assert not isinstance(error.value, NotFound), "a missing bucket is no missing object"


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3: str, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(wrong, "wrong")
    store = open_store(s3)
    for call in (lambda: store.get("a"), lambda: store.put("a", b"x"), lambda: store.head("a")):
        with pytest.raises(StoreUnavailable, match="access denied") as error:
            call()
        assert not isinstance(error.value, NotFound)


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID"):
        open_store(s3).get("a")


def test_a_server_that_is_down(aws_free: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StoreUnavailable, match=endpoint) as error:
        open_store("s3://bucket/").get("a")
    settings = make_client().meta.config
    assert settings.retries["total_max_attempts"] * settings.connect_timeout < 10, "seconds, if it does not even refuse"
    assert "AWS_ENDPOINT_URL" in error.value.message


def test_a_server_that_never_answers(aws_free: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match="does not answer"):
            S3Store("bucket", client=make_client(QUICK)).get("a")


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL_S3", "no url"), ("AWS_PROFILE", "unknown")])
def test_settings_that_cannot_be_used(aws_free: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable, match=name):
        open_store("s3://bucket/")


def test_a_custom_endpoint_is_asked_by_path_and_aws_by_host_name(
    aws_free: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def url() -> str:
        return make_client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert url().startswith("https://bucket.s3.")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio.storage:9000")
    assert url().startswith("http://minio.storage:9000/bucket/k")


CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")


def s3_settings() -> list[str]:
    config = make_client().meta.config
    return [getattr(config, name) for name in CHECKSUMS]


def test_checksums_of_aws_are_for_aws(aws_free: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere their framing is refused, or stored as content; but the user's own word counts."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert s3_settings() == ["when_supported", "when_supported"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://oss.example.com")
    assert s3_settings() == ["when_required", "when_required"]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    assert [setting.lower() for setting in s3_settings()] == ["when_supported", "when_required"]
    (tmp_path / "config").write_text("[default]\nresponse_checksum_validation = when_supported\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert [setting.lower() for setting in s3_settings()] == ["when_supported", "when_supported"]


def test_the_users_addressing_style_counts(aws_free: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://oss.example.com")
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    url = make_client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert url.startswith("https://bucket.oss.example.com/k")


def test_a_stream_that_is_cut_off_starts_again(aws_free: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with cutting_server(b"0123456789", cuts=2) as (endpoint, served):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        store = open_store("s3://bucket/")
        store.download("a", tmp_path / "target", size=10, sha256=sha256(b"0123456789"))
        assert (tmp_path / "target").read_bytes() == b"0123456789"
        assert len(served) == 3


def test_a_stream_that_is_always_cut_off_is_unavailable(
    aws_free: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with cutting_server(b"0123456789", cuts=99) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        (tmp_path / "out").mkdir()
        store = open_store("s3://bucket/")
        with pytest.raises(StoreUnavailable, match="does not answer"):
            store.download("a", tmp_path / "out" / "target", size=10, sha256=sha256(b"0123456789"))
        with pytest.raises(StoreUnavailable, match="does not answer"):
            store.get("a")
        assert os.listdir(tmp_path / "out") == []


@contextmanager
def cutting_server(body: bytes, *, cuts: int) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that promises `body` and hangs up after half of it, `cuts` times."""
    served: list[str] = []

    class Handler(QuietHandler):
        def answer(self, _: bytes) -> None:
            served.append(self.path)
            content = body if len(served) > cuts else body[: len(body) // 2]
            self.reply(200, content, ETag='"e"', Content_Length=str(len(body)))
            self.close_connection = True

    with serving(Handler) as address:
        yield f"http://{address}", served
