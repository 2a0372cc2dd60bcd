"""Google Cloud Storage as obstore sees it: the XML API, with conditions on generations.

After https://cloud.google.com/storage/docs/xml-api/reference-headers: `x-goog-if-generation-match` is 0 for an object
that must not exist. A listing has no generations in the fields that obstore reads.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from tests.support.fake_blobs import MODIFIED, Blob, CloudHandler

TOKEN = "emulator"


class FakeGcs(CloudHandler):
    def dispatch(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "AuthenticationRequired")
        elif self.bucket != self.blobs.bucket:
            self.refuse(404, "NoSuchBucket")
        elif not self.key:
            self._list()
        elif self.command == "POST":
            self._finish() if "uploadId" in self.query else self._begin()
        elif self.command == "PUT":
            self._put(body)
        elif self.key not in self.blobs.objects:
            self.refuse(404, "NoSuchKey")
        elif self.command == "DELETE":
            del self.blobs.objects[self.key]
            self.reply(204)
        else:
            blob = self.blobs.objects[self.key]
            self.send_blob(blob, _etag(blob), x_goog_generation=str(blob.generation))

    def _put(self, body: bytes) -> None:
        if upload := self.query.get("uploadId"):
            self.blobs.parts[upload][self.query["partNumber"]] = body
            self.reply(200, ETag=f'"{self.query["partNumber"]}"')
            return
        now = self.blobs.objects.get(self.key)
        expected = self.headers.get("x-goog-if-generation-match")
        if expected is not None and int(expected) != (now.generation if now else 0):
            self.refuse(412, "PreconditionFailed")
            return
        self._written(self.blobs.write(self.key, body))

    def _begin(self) -> None:
        upload = f"upload-{len(self.blobs.parts)}"
        self.blobs.parts[upload] = {}
        fields = f"<Bucket>{self.bucket}</Bucket><Key>{escape(self.key)}</Key><UploadId>{upload}</UploadId>"
        self._xml("InitiateMultipartUploadResult", fields)

    def _finish(self) -> None:
        parts = self.blobs.parts.pop(self.query["uploadId"])
        blob = self.blobs.write(self.key, b"".join(parts[number] for number in sorted(parts, key=int)))
        self._xml("CompleteMultipartUploadResult", f"<ETag>{escape(_etag(blob))}</ETag>", blob)

    def _list(self) -> None:
        found, after = self.blobs.page(self.query.get("prefix", ""), self.query.get("continuation-token", ""))
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Generation>{blob.generation}</Generation>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{escape(_etag(blob))}</ETag>"
            f"<Size>{len(blob.data)}</Size></Contents>"
            for key, blob in found
        ]
        if after:
            rows.append(f"<NextContinuationToken>{escape(after)}</NextContinuationToken>")
        self._xml("ListBucketResult", "".join(rows))

    def _written(self, blob: Blob) -> None:
        self.reply(200, ETag=_etag(blob), x_goog_generation=str(blob.generation), Last_Modified=MODIFIED)

    def _xml(self, name: str, content: str, blob: Blob | None = None) -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?><{name}>{content}</{name}>".encode()
        headers = {} if blob is None else {"x_goog_generation": str(blob.generation)}
        self.reply(200, body, Content_Type="application/xml", **headers)


def _etag(blob: Blob) -> str:
    return f'"{blob.md5}"'
