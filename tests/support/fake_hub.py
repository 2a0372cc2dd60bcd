"""A Hugging Face hub on this machine: what huggingface_hub asks for to list and download a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.http_server import QuietHandler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories by id, each a mapping of file name to content. Large files are those of *.safetensors."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.gated: set[str] = set()
        self.downloaded: list[str] = []
        self.url = ""

    def answer(self, handler: QuietHandler) -> None:
        path = urlsplit(handler.path).path.strip("/")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        files = self.repositories.get(name)
        if files is None:
            handler.reply(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif name in self.gated:
            handler.reply(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif api and rest[:1] == ["tree"]:
            entries = [_entry(file, content) for file, content in files.items()]
            handler.reply(200, json.dumps(entries).encode(), Content_Type="application/json")
        elif api and (rest[1:] or ["main"]) not in (["main"], [COMMIT]):
            handler.reply(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="Revision not found")
        elif api:
            siblings = [{"rfilename": file, **_entry(file, content)} for file, content in files.items()]
            body = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            handler.reply(200, json.dumps(body).encode(), Content_Type="application/json")
        else:
            file = "/".join(rest[2:])
            content = files[file]
            if handler.command == "GET":
                self.downloaded.append(file)
            entry = _entry(file, content)
            lfs = entry.get("lfs")
            etag = lfs["oid"] if isinstance(lfs, dict) else entry["oid"]
            handler.reply(200, content, X_Repo_Commit=COMMIT, ETag=f'"{etag}"', X_Linked_Etag=f'"{etag}"')


def _entry(file: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": file, "size": len(content), "oid": blob, "blobId": blob}
    if file.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


@contextmanager
def fake_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, repositories: Mapping[str, Mapping[str, bytes]]
) -> Iterator[FakeHub]:
    """A hub that huggingface_hub talks to in this process, with `cache` as its cache."""
    hub = FakeHub(repositories)

    class Handler(QuietHandler):
        def answer(self, body: bytes) -> None:
            hub.answer(self)

    with serving(Handler) as address:
        hub.url = server = f"http://{address}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub
