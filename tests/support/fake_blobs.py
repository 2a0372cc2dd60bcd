"""What the fakes of the two clouds share: objects with etags and generations, ranges, and faults on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.http_server import QuietHandler, serving

PAGE = 1000
MODIFIED = formatdate(0, usegmt=True)


@dataclass(frozen=True)
class Blob:
    data: bytes
    generation: int

    @property
    def md5(self) -> str:
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()


class Blobs:
    """The objects of one bucket by key, and uploads that are not complete."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.lock = threading.Lock()
        self.objects: dict[str, Blob] = {}
        self.parts: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.fault: Callable[[CloudHandler], bool] | None = None
        """Called with each request; True if it has dealt with it."""
        self._generation = 0

    def write(self, key: str, data: bytes) -> Blob:
        self._generation += 1
        self.objects[key] = Blob(data, self._generation)
        return self.objects[key]

    def page(self, prefix: str, after: str) -> tuple[list[tuple[str, Blob]], str]:
        """A page of a listing, and the key after which the next one begins, empty for the last."""
        found = sorted((key, blob) for key, blob in self.objects.items() if key.startswith(prefix) and key > after)
        return found[:PAGE], found[PAGE - 1][0] if len(found) > PAGE else ""


class CloudHandler(QuietHandler):
    """One request: `bucket`, `key` and `query` are parsed, and answered under the lock by `dispatch`."""

    blobs: ClassVar[Blobs]
    bucket: str
    key: str
    query: dict[str, str]

    def split(self, path: str) -> tuple[str, str]:
        """Bucket and key, still quoted."""
        bucket, _, key = path.lstrip("/").partition("/")
        return bucket, key

    def dispatch(self, body: bytes) -> None:
        raise NotImplementedError

    def answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        self.bucket, self.key = map(unquote, self.split(url.path))
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.blobs.requests.append(f"{self.command} {self.path}")
        if self.blobs.fault is None or not self.blobs.fault(self):
            with self.blobs.lock:
                self.dispatch(body)

    def refuse(self, status: int, code: str, text: str = "some words\nabout it") -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
        self.reply(status, body.encode(), Content_Type="application/xml")

    def send_blob(self, blob: Blob, etag: str, **headers: str) -> None:
        """The object, its metadata alone for HEAD, the part that was asked for, or that it has not changed."""
        headers |= {"ETag": etag, "Last_Modified": MODIFIED}
        if self.headers.get("If-None-Match") == etag:
            self.reply(304, **headers)
        elif wanted := self.headers.get("Range"):
            start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            part = blob.data[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(blob.data)}"
            self.reply(206, part, **headers)
        else:
            self.reply(200, blob.data, **headers)


@contextmanager
def serving_blobs(kind: type[CloudHandler], bucket: str) -> Iterator[tuple[str, Blobs]]:
    """The address of a fake with an empty bucket, and what it holds."""
    blobs = Blobs(bucket)
    handler = type(kind.__name__, (kind,), {"blobs": blobs})
    with serving(handler) as address:
        yield address, blobs
