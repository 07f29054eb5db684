"""The object store: content-addressed blobs under a prefix per tenant, in a local folder or Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import IO, Protocol
from uuid import UUID

from shared.errors import SettingsError
from shared.settings import Settings
from shared.storage.cloud import CloudStorage
from shared.storage.folder import FolderStorage
from shared.storage.keys import Blob, SignedUpload, UploadTerms, corrupt, key, missing, own_key, too_large

__all__ = [
    "Blob",
    "CloudStorage",
    "FolderStorage",
    "SignedUpload",
    "Storage",
    "UploadTerms",
    "corrupt",
    "key",
    "make_storage",
    "missing",
    "own_key",
    "too_large",
]


class Storage(Protocol):
    """Where blobs live. The twin for tests is `shared.fakes.FakeStorage`."""

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their URI; the same bytes of a tenant have the same URI.

        Bytes that are there already are made new again (`Blob.version` changes), so that the collector, which may
        be about to delete them, leaves them alone.
        """

    def put_file(self, tenant_id: UUID, file: IO[bytes]) -> str:
        """The same for a file from its beginning, without having it in memory."""

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a URI of this tenant.

        Raises PermanentError `uri-not-allowed` (not a blob of this tenant), `blob-missing`, `too-large`,
        `blob-corrupt` (not the bytes whose SHA-256 is their name).
        """

    def read(self, tenant_id: UUID, uri: str) -> Iterator[bytes]:
        """The bytes behind a URI in pieces of at most 1 MiB, of any size and unchecked. Raises as `get`."""

    def uri(self, tenant_id: UUID, content_hash: str) -> str:
        """The URI that bytes with this SHA-256 (hexadecimal) have, stored or not."""

    def find(self, tenant_id: UUID, uri: str) -> Blob | None:
        """What is behind a URI of this tenant, None when nothing is. Raises PermanentError `uri-not-allowed`."""

    def refresh(self, tenant_id: UUID, uri: str) -> Blob | None:
        """Make a blob new again, as `put` does; None when it is not there."""

    def blobs(self, tenant_id: UUID | None = None, after: str = "") -> Iterator[Blob]:
        """All blobs, of one tenant or of all, ordered by key, behind the key `after`."""

    def delete(self, blob: Blob) -> bool:
        """Delete a blob that is still as it was seen; False when it was made new, replaced or is gone."""

    def erase(self, tenant_id: UUID) -> Iterator[int]:
        """Delete everything below a tenant's prefix, old generations and drafts too; yields bytes one by one."""

    def tidy(self, before: datetime) -> int:
        """Remove what writes that were interrupted before this moment have left; returns how much."""

    def sign_upload(self, tenant_id: UUID, terms: UploadTerms, lifetime: timedelta) -> SignedUpload | None:
        """An address to which exactly these bytes may be sent without an account; None where the store has none."""


def make_storage(settings: Settings) -> Storage:
    """The store that BLOB_URL names. Raises SettingsError when it names none."""
    url = settings.blob_url
    if url.startswith("gs://"):
        return CloudStorage(url, signer=settings.blob_signer)
    if url.startswith("file:///"):
        return FolderStorage(url)
    raise SettingsError("BLOB_URL is not usable: set it to file:///folder or gs://bucket/prefix.")
