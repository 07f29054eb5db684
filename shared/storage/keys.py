"""Where a tenant's bytes live, which URIs are theirs, and how a store refuses."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from shared.errors import PermanentError

KEY = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9a-f]{64}")

PIECE = 1024 * 1024
"""Bytes that are read from or written to a store at once."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob as it was seen: `version` changes whenever it is written or made new, `changed_at` is when (UTC)."""

    tenant_id: UUID
    content_hash: str
    size: int
    version: str
    changed_at: datetime

    @property
    def key(self) -> str:
        """Its place below the store's root."""
        return f"{self.tenant_id}/{self.content_hash}"


@dataclass(frozen=True, slots=True)
class UploadTerms:
    """What may be uploaded: exactly these bytes. `md5` is base64, or empty where the sender does not know it."""

    content_hash: str
    size: int
    media_type: str
    md5: str = ""


@dataclass(frozen=True, slots=True)
class SignedUpload:
    """How to send the bytes: the address, and headers that must be sent exactly so."""

    url: str
    method: str = "PUT"
    headers: dict[str, str] = field(default_factory=dict)


def key(tenant_id: UUID, data: bytes) -> str:
    """Where a tenant's bytes live below the store's root: tenant / SHA-256."""
    return f"{tenant_id}/{hashlib.sha256(data).hexdigest()}"


def own_key(root: str, tenant_id: UUID, uri: str) -> str:
    """The key of a URI below `root`, if it is one of this tenant's; a message may name any URI it likes."""
    prefix = root.rstrip("/") + "/"
    rest = uri[len(prefix) :] if uri.startswith(prefix) else ""
    if not KEY.fullmatch(rest) or not rest.startswith(f"{tenant_id}/"):
        raise PermanentError(
            "uri-not-allowed",
            "The URI is not a blob of this tenant in the platform's object store.",
            "Upload the document first (`noesis submit` does it), or send it inline.",
        )
    return rest


def verified(name: str, data: bytes) -> bytes:
    """The bytes, if they are those that the key names. Raises PermanentError `blob-corrupt` otherwise."""
    if hashlib.sha256(data).hexdigest() != name[-64:]:
        raise corrupt()
    return data


def missing() -> PermanentError:
    """The blob behind a URI is gone."""
    return PermanentError("blob-missing", "The object store has no such blob.", "Upload the document again.")


def corrupt() -> PermanentError:
    """The blob is not what its name says: damaged, or uploaded under a name that is not its own."""
    return PermanentError(
        "blob-corrupt", "The bytes in the object store are not those their address names.", "Upload the document again."
    )


def too_large(limit: int) -> PermanentError:
    """The blob is larger than a document may be."""
    return PermanentError(
        "too-large", f"The document is larger than {limit:,} bytes.", "Split it, or have the limit raised."
    )
