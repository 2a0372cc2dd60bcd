"""Azure Blob Storage as obstore sees it: blobs, blocks, pages of a listing, and batches of deletions.

After https://learn.microsoft.com/en-us/rest/api/storageservices/blob-service-rest-api. Etags are quoted in headers and
bare in listings; a blob that exists is 409, a condition that fails 412. Signatures are not checked, accounts are.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.fake_blobs import MODIFIED, Blob, CloudHandler

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key of no account").decode()

_BLOCK = re.compile(r"<(?:Uncommitted|Latest)>([^<]+)</")
_DELETION = re.compile(rb"Content-ID: (\d+)\r\n.*?DELETE (\S+) HTTP", re.DOTALL)


def connection_string(address: str) -> str:
    """What reaches a fake at `host:port`."""
    return f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://{address}/{ACCOUNT};"


class FakeAzure(CloudHandler):
    def split(self, path: str) -> tuple[str, str]:
        container, _, key = path.removeprefix(f"/{ACCOUNT}/").partition("/")
        return container, key

    def dispatch(self, body: bytes) -> None:
        signed = self.headers.get("Authorization", "").startswith(f"SharedKey {ACCOUNT}:")
        if not signed:
            self.refuse(403, "AuthenticationFailed", "Signature=c2VjcmV0")
        elif self.bucket != self.blobs.bucket:
            self.refuse(404, "ContainerNotFound")
        elif not self.key:
            self._delete_all(body) if self.query.get("comp") == "batch" else self._list()
        elif self.command == "PUT":
            self._put(body)
        elif self.key not in self.blobs.objects:
            self.refuse(404, "BlobNotFound")
        else:
            blob = self.blobs.objects[self.key]
            self.send_blob(blob, f'"{_etag(blob)}"', x_ms_blob_type="BlockBlob")

    def _put(self, body: bytes) -> None:
        blocks = self.blobs.parts.setdefault(self.key, {})
        if self.query.get("comp") == "block":
            blocks[self.query["blockid"]] = body
            self.reply(201)
            return
        if self.query.get("comp") == "blocklist":
            body = b"".join(blocks[block] for block in _BLOCK.findall(body.decode()))
            blocks.clear()
        now = self.blobs.objects.get(self.key)
        if self.headers.get("If-None-Match") == "*" and now is not None:
            self.refuse(409, "BlobAlreadyExists")
            return
        expected = self.headers.get("If-Match")
        if expected is not None and (now is None or expected != f'"{_etag(now)}"'):
            self.refuse(412, "ConditionNotMet")
            return
        self.reply(201, ETag=f'"{_etag(self.blobs.write(self.key, body))}"', Last_Modified=MODIFIED)

    def _list(self) -> None:
        found, after = self.blobs.page(self.query.get("prefix", ""), self.query.get("marker", ""))
        rows = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>"
            f"<Etag>{_etag(blob)}</Etag><Content-Length>{len(blob.data)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key, blob in found
        )
        result = f"<Blobs>{rows}</Blobs><NextMarker>{escape(after)}</NextMarker>"
        body = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{result}</EnumerationResults>'
        self.reply(200, body.encode(), Content_Type="application/xml")

    def _delete_all(self, body: bytes) -> None:
        answers = []
        for number, path in _DELETION.findall(body):
            _, key = self.split(unquote(urlsplit(path.decode()).path))
            line = "202 Accepted" if self.blobs.objects.pop(key, None) else "404 The specified blob does not exist."
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number.decode()}\r\n\r\n"
                f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        self.reply(202, f"{''.join(answers)}--batch--\r\n".encode(), Content_Type="multipart/mixed; boundary=batch")


def _etag(blob: Blob) -> str:
    return f"0x{blob.generation:015X}"
