"""The object store: content-addressed blobs under a prefix per tenant, in a local folder or Google Cloud Storage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

from shared.errors import PermanentError, SettingsError
from shared.settings import Settings

_KEY = re.compile(r"[0-9a-f-]{36}/[0-9a-f]{64}")


class Storage(Protocol):
    """Where blobs live. The twin for tests is `shared.fakes.FakeStorage`."""

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their URI; the same bytes of a tenant have the same URI."""

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a URI of this tenant.

        Raises PermanentError `uri-not-allowed` (not a blob of this tenant), `blob-missing`, `too-large`.
        """


def key(tenant_id: UUID, data: bytes) -> str:
    """Where a tenant's bytes live below the store's root: tenant / SHA-256."""
    return f"{tenant_id}/{hashlib.sha256(data).hexdigest()}"


def own_key(root: str, tenant_id: UUID, uri: str) -> str:
    """The key of a URI below `root`, if it is one of this tenant's; a message may name any URI it likes."""
    prefix = root.rstrip("/") + "/"
    rest = uri[len(prefix) :] if uri.startswith(prefix) else ""
    if not _KEY.fullmatch(rest) or not rest.startswith(f"{tenant_id}/"):
        raise PermanentError(
            "uri-not-allowed",
            "The URI is not a blob of this tenant in the platform's object store.",
            "Upload the document first (`noesis submit` does it), or send it inline.",
        )
    return rest


def missing() -> PermanentError:
    """The blob behind a URI is gone."""
    return PermanentError("blob-missing", "The object store has no such blob.", "Upload the document again.")


def too_large(limit: int) -> PermanentError:
    """The blob is larger than a document may be."""
    return PermanentError(
        "too-large", f"The document is larger than {limit:,} bytes.", "Split it, or have the limit raised."
    )


class FolderStorage:
    """Blobs as files below a folder; a write is complete or not there (temporary file, fsync, rename)."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self._folder = Path(unquote(urlsplit(root).path))

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their file URI."""
        name = key(tenant_id, data)
        path = self._folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{uuid4().hex}")
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        return f"{self._root}/{name}"

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a file URI of this tenant."""
        path = self._folder / own_key(self._root, tenant_id, uri)
        try:
            if path.stat().st_size > limit:
                raise too_large(limit)
            return path.read_bytes()
        except FileNotFoundError:
            raise missing() from None


class CloudStorage:
    """Blobs as objects in a Google Cloud Storage bucket."""

    def __init__(self, root: str) -> None:
        # Imported late: a laptop never needs it, and it costs a cold start 0.3 s.
        from google.cloud import storage

        self._root = root.rstrip("/")
        parts = urlsplit(root)
        self._prefix = parts.path.strip("/")
        self._bucket: Any = storage.Client().bucket(parts.netloc)

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their gs URI; an object that is there already is left alone."""
        from google.api_core.exceptions import PreconditionFailed

        name = key(tenant_id, data)
        with contextlib.suppress(PreconditionFailed):  # it is there already, and the same name means the same bytes
            self._blob(name).upload_from_string(
                data, content_type="application/octet-stream", if_generation_match=0, checksum="crc32c"
            )
        return f"{self._root}/{name}"

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a gs URI of this tenant."""
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        blob = self._blob(own_key(self._root, tenant_id, uri))
        try:
            # One byte more than allowed is enough to know; the whole of a huge object is never read.
            data: bytes = blob.download_as_bytes(start=0, end=limit)
        except NotFound:
            raise missing() from None
        except RequestRangeNotSatisfiable:  # an empty object has no first byte
            return b""
        if len(data) > limit:
            raise too_large(limit)
        return data

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(f"{self._prefix}/{name}" if self._prefix else name)


def make_storage(settings: Settings) -> Storage:
    """The store that BLOB_URL names. Raises SettingsError when it names none."""
    url = settings.blob_url
    if url.startswith("gs://"):
        return CloudStorage(url)
    if url.startswith("file:///"):
        return FolderStorage(url)
    raise SettingsError("BLOB_URL is not usable: set it to file:///folder or gs://bucket/prefix.")
