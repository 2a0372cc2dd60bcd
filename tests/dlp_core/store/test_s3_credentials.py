"""S3 credentials in files: read again when they change, and what is said of files that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from dlp_core.errors import StoreUnavailable
from dlp_core.store.s3 import S3Store, make_client
from dlp_core.store.s3_credentials import ID_VARIABLE, SECRET_VARIABLE
from tests.support.http_server import QuietHandler, serving


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a mounted Secret, which is a link to the folder of its version. Not made yet."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "current" / name))
        monkeypatch.setenv(name, f"variable-{name}")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return tmp_path


def publish(secret: Path, version: str) -> None:
    """As the kubelet does: a new folder, and one rename of a link."""
    folder = secret / version
    folder.mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (folder / name).write_text(f"{version}-{name}\n")
    (secret / "next").symlink_to(folder)
    os.rename(secret / "next", secret / "current")


class Bucket(QuietHandler):
    """Answers every request, and keeps the credentials that it was signed with."""

    signed_by: list[str]

    def answer(self, body: bytes) -> None:
        self.signed_by.append(self.headers["Authorization"].split("Credential=")[1].split("/")[0])
        self.reply(200, ETag='"1"')


def test_a_client_signs_with_the_key_that_the_files_hold_now(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(secret, "one")
    monkeypatch.setattr(Bucket, "signed_by", [], raising=False)
    with serving(Bucket) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address}")
        store = S3Store("bucket")
        store.get("a")
        publish(secret, "two")
        store.get("a")
    assert Bucket.signed_by == ["one-AWS_ACCESS_KEY_ID", "two-AWS_ACCESS_KEY_ID"]


def test_the_secret_key_belongs_to_the_access_key(secret: Path) -> None:
    publish(secret, "one")
    credentials = make_client()._request_signer._credentials  # type: ignore[attr-defined]
    publish(secret, "two")
    frozen = credentials.get_frozen_credentials()
    assert (frozen.access_key, frozen.secret_key) == ("two-AWS_ACCESS_KEY_ID", "two-AWS_SECRET_ACCESS_KEY")
    request = AWSRequest("GET", "https://bucket.s3.amazonaws.com/a")
    SigV4Auth(frozen, "s3", "us-east-1").add_auth(request)
    assert "two-AWS_ACCESS_KEY_ID" in request.headers["Authorization"]


def test_where_there_are_no_files_the_chain_goes_on(secret: Path) -> None:
    assert make_client()._request_signer._credentials.access_key == "variable-AWS_ACCESS_KEY_ID"  # type: ignore[attr-defined]


def test_a_file_that_becomes_useless_leaves_the_last_key(secret: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(secret, "one")
    credentials = make_client()._request_signer._credentials  # type: ignore[attr-defined]
    (secret / "one/AWS_SECRET_ACCESS_KEY").write_text("")
    assert credentials.get_frozen_credentials().secret_key == "one-AWS_SECRET_ACCESS_KEY"
    assert "stays in use" in caplog.text
    assert "one-AWS" not in caplog.text


def test_files_that_cannot_be_used_are_named(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(secret, "one")
    (secret / "one/AWS_ACCESS_KEY_ID").write_text("\n")
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID: the file is empty"):
        make_client()
    (secret / "one/AWS_ACCESS_KEY_ID").unlink()
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID: the secret cannot be read"):
        make_client()
    monkeypatch.delenv(ID_VARIABLE)
    with pytest.raises(StoreUnavailable, match=f"{SECRET_VARIABLE} must be set together"):
        make_client()
