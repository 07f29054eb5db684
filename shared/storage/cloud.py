"""Blobs as objects in a Google Cloud Storage bucket.

What may only happen to the object that was seen carries its generation and metageneration as preconditions, so that
Cloud Storage itself decides the races (https://cloud.google.com/storage/docs/request-preconditions).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import UUID

from shared.storage.keys import KEY, PIECE, Blob, SignedUpload, UploadTerms, missing, own_key, too_large, verified

RESUMABLE_PIECE = 8 * 1024 * 1024
"""Bytes of one request of a resumable upload; Google's client sends files above 8 MiB so."""


class CloudStorage:
    """Blobs as objects in a bucket. `signer` is the service account in whose name uploads are signed (IAM signBlob);
    without it the process's own key signs, if it has one. `session` carries the calls to IAM (tests)."""

    def __init__(self, root: str, *, signer: str = "", session: Any = None) -> None:
        # Imported late: a laptop never needs it, and it costs a cold start 0.3 s.
        from google.cloud import storage

        self._root = root.rstrip("/")
        parts = urlsplit(root)
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._client = storage.Client()
        self._bucket: Any = self._client.bucket(parts.netloc)
        self._signer, self._session = signer, session

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their gs URI."""
        return self._store(tenant_id, hashlib.sha256(data).hexdigest(), hashlib.md5(data).digest(), BytesIO(data))  # noqa: S324

    def put_file(self, tenant_id: UUID, file: IO[bytes]) -> str:
        """Store a file and return its URI; above 8 MiB by a resumable upload."""
        sha256, md5 = hashlib.sha256(), hashlib.md5()  # noqa: S324 # what Cloud Storage compares by, not a secret
        file.seek(0)
        while piece := file.read(PIECE):
            sha256.update(piece)
            md5.update(piece)
        return self._store(tenant_id, sha256.hexdigest(), md5.digest(), file)

    def _store(self, tenant_id: UUID, content_hash: str, md5: bytes, file: IO[bytes]) -> str:
        from google.api_core.exceptions import PreconditionFailed

        uri, generation = self.uri(tenant_id, content_hash), 0
        while True:
            size = file.seek(0, 2)
            file.seek(0)
            target = self._blob(f"{tenant_id}/{content_hash}")
            target.chunk_size = RESUMABLE_PIECE
            try:
                target.upload_from_file(
                    file,
                    size=size,
                    content_type="application/octet-stream",
                    if_generation_match=generation,
                    checksum="crc32c",
                )
            except PreconditionFailed:
                there = self._renewed(tenant_id, content_hash)
                if there is None:  # deleted in between: the name is free
                    generation = 0
                elif there.md5_hash == base64.b64encode(md5).decode():
                    return uri
                else:  # somebody was allowed to upload here and sent something else: the right bytes take its place
                    generation = there.generation
            else:
                return uri

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a gs URI of this tenant."""
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        name = own_key(self._root, tenant_id, uri)
        try:
            # One byte more than allowed is enough to know; the whole of a huge object is never read.
            data: bytes = self._blob(name).download_as_bytes(start=0, end=limit)
        except NotFound:
            raise missing() from None
        except RequestRangeNotSatisfiable:  # an empty object has no first byte
            data = b""
        if len(data) > limit:
            raise too_large(limit)
        return verified(name, data)

    def read(self, tenant_id: UUID, uri: str) -> Iterator[bytes]:
        """The bytes in pieces."""
        from google.api_core.exceptions import NotFound

        try:
            with self._blob(own_key(self._root, tenant_id, uri)).open("rb", chunk_size=PIECE) as file:
                while piece := file.read(PIECE):
                    yield piece
        except NotFound:
            raise missing() from None

    def uri(self, tenant_id: UUID, content_hash: str) -> str:
        """The gs URI of a content."""
        return f"{self._root}/{tenant_id}/{content_hash}"

    def find(self, tenant_id: UUID, uri: str) -> Blob | None:
        """What is behind a gs URI."""
        found = self._bucket.get_blob(self._prefix + own_key(self._root, tenant_id, uri))
        return self._seen(found) if found else None

    def refresh(self, tenant_id: UUID, uri: str) -> Blob | None:
        """Give an object a new metageneration."""
        found = self._renewed(tenant_id, own_key(self._root, tenant_id, uri)[-64:])
        return self._seen(found) if found else None

    def _renewed(self, tenant_id: UUID, content_hash: str) -> Any:
        from google.api_core.exceptions import NotFound, TooManyRequests

        blob = self._blob(f"{tenant_id}/{content_hash}")
        blob.metadata = {"renewed": datetime.now(UTC).isoformat()}
        try:
            blob.patch()
        except NotFound:
            return None
        except TooManyRequests:
            # One change a second is what an object bears: somebody else has renewed it in this very second.
            return self._bucket.get_blob(blob.name)
        return blob

    def blobs(self, tenant_id: UUID | None = None, after: str = "") -> Iterator[Blob]:
        """All blobs in order, a thousand a request."""
        prefix = f"{self._prefix}{tenant_id}/" if tenant_id else self._prefix
        start = f"{self._prefix}{after}" if after else None
        for found in self._bucket.list_blobs(prefix=prefix or None, start_offset=start):
            key = found.name.removeprefix(self._prefix)
            if KEY.fullmatch(key) and key > after:  # the offset itself is part of the answer
                yield self._seen(found)

    def delete(self, blob: Blob) -> bool:
        """Delete an object that is still of the generation and metageneration that were seen."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        generation, metageneration = blob.version.split(".")
        try:
            self._blob(blob.key).delete(if_generation_match=generation, if_metageneration_match=metageneration)
        except (NotFound, PreconditionFailed):
            return False
        return True

    def erase(self, tenant_id: UUID) -> Iterator[int]:
        """Delete every generation of every object below the tenant's prefix."""
        from google.api_core.exceptions import NotFound

        for found in self._bucket.list_blobs(prefix=f"{self._prefix}{tenant_id}/", versions=True):
            try:
                found.delete(if_generation_match=found.generation)
            except NotFound:
                continue
            yield int(found.size or 0)

    def tidy(self, before: datetime) -> int:
        """Nothing: Cloud Storage forgets unfinished uploads after a week by itself."""
        return 0

    def sign_upload(self, tenant_id: UUID, terms: UploadTerms, lifetime: timedelta) -> SignedUpload | None:
        """A V4 signed URL, bound to object, number of bytes, type and, where known, MD5; only for an absent object.

        https://cloud.google.com/storage/docs/authentication/signatures. None without a key or account to sign with.
        """
        from shared.storage.signing import signing_credentials

        credentials = signing_credentials(self._signer, self._session)
        if credentials is None:
            return None
        headers = {
            "Content-Type": terms.media_type or "application/octet-stream",
            "x-goog-content-length-range": f"{terms.size},{terms.size}",
            "x-goog-if-generation-match": "0",
        }
        if terms.md5:
            headers["Content-MD5"] = terms.md5
        url = self._blob(f"{tenant_id}/{terms.content_hash}").generate_signed_url(
            version="v4", expiration=lifetime, method="PUT", headers=dict(headers), credentials=credentials
        )
        return SignedUpload(url, "PUT", headers)

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + name)

    def _seen(self, found: Any) -> Blob:
        tenant, _, content_hash = found.name.removeprefix(self._prefix).partition("/")
        version = f"{found.generation}.{found.metageneration}"
        return Blob(UUID(tenant), content_hash, int(found.size or 0), version, found.updated)
