"""Uploads that do not pass through the process that orders them: an address for exactly these bytes, once, for a while.

In Cloud Storage it is a signed URL of the bucket, which the client sends to directly; where the store has no address
of its own, web takes the bytes under a one-time token. Afterwards the client says that it is done, or publishes
`document-submitted` with the URI itself, as any upstream system does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import IO
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError
from shared.storage import SignedUpload, Storage, UploadTerms, too_large
from shared.storage.keys import PIECE
from shared.tenants.directory import Principal

LIFETIME = timedelta(minutes=15)
"""Long enough for the largest document over a slow line, short enough that a leaked address is worth little."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """An upload that may be made: `signed` says where to in the store itself, else `token` opens web's own address."""

    upload_id: UUID
    uri: str
    signed: SignedUpload | None
    token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it was ordered."""

    upload_id: UUID
    file_name: str
    media_type: str
    content_hash: str
    size: int
    ordered_at: datetime


def checked_terms(content_hash: str, size: int, media_type: str, md5: str, limit: int) -> UploadTerms:
    """The terms of an upload. Raises PermanentError `upload-malformed`, `too-large`."""
    if not re.fullmatch(r"[0-9a-f]{64}", content_hash) or size < 1 or not _is_md5(md5):
        raise PermanentError(
            "upload-malformed",
            "The upload was not described as it must be.",
            "Send the number of bytes, their SHA-256 in hexadecimal and, if known, their MD5 in base64.",
        )
    if size > limit:
        raise too_large(limit)
    return UploadTerms(content_hash, size, media_type, md5)


def _is_md5(value: str) -> bool:
    try:
        return not value or len(base64.b64decode(value, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def order_upload(
    session: Session, principal: Principal, file_name: str, terms: UploadTerms, signed: SignedUpload | None,
    storage: Storage, now: datetime,
) -> Ordered:  # fmt: skip
    """Note an upload that may be made. `signed` is `storage.sign_upload(…)`, asked for before the session began."""
    ordered = Ordered(
        upload_id=uuid4(),
        uri=storage.uri(principal.tenant_id, terms.content_hash),
        signed=signed,
        token="" if signed else secrets.token_urlsafe(32),
        expires_at=now + LIFETIME,
    )
    session.execute(
        text(
            "insert into core.uploads (tenant_id, upload_id, member_id, file_name, media_type, content_hash, bytes, "
            "token_hash, expires_at, created_at) "
            "values (:tenant, :upload, :member, :name, :type, :hash, :bytes, :token, :expires, :now)"
        ),
        {
            "tenant": principal.tenant_id,
            "upload": ordered.upload_id,
            "member": principal.member_id,
            "name": file_name,
            "type": terms.media_type,
            "hash": terms.content_hash,
            "bytes": terms.size,
            "token": _hash(ordered.token) if ordered.token else "",
            "expires": ordered.expires_at,
            "now": now,
        },
    )
    return ordered


def open_upload(session: Session, tenant_id: UUID, upload_id: UUID, token: str, now: datetime) -> Upload:
    """The upload that a token opens. Raises PermanentError `upload-not-allowed`, the same for every cause."""
    row = session.execute(
        text(
            "select upload_id, file_name, media_type, content_hash, bytes, created_at, token_hash from core.uploads "
            "where tenant_id = :tenant and upload_id = :upload and expires_at > :now and stored_at is null"
        ),
        {"tenant": tenant_id, "upload": upload_id, "now": now},
    ).first()
    # Compared also when there is nothing to compare with: the time tells nobody which uploads exist. What goes to the
    # bucket directly has no token, and nothing opens it here.
    expected = row.token_hash if row and row.token_hash else secrets.token_hex(32)
    if not hmac.compare_digest(_hash(token), expected) or row is None:
        raise not_allowed()
    return Upload(*row[:6])


def spool(upload: Upload, read: Callable[[int], bytes], into: IO[bytes]) -> None:
    """Take the bytes of an upload piece by piece. Raises PermanentError `upload-mismatch` for more, fewer or others."""
    digest, size = hashlib.sha256(), 0
    while size <= upload.size and (piece := read(min(PIECE, upload.size + 1 - size))):
        digest.update(piece)
        size += len(piece)
        into.write(piece)
    if size != upload.size or digest.hexdigest() != upload.content_hash:
        raise PermanentError(
            "upload-mismatch",
            "The bytes that arrived are not those that were announced.",
            "Upload the file again; it may have changed meanwhile.",
        )


def close_upload(session: Session, tenant_id: UUID, upload_id: UUID, now: datetime) -> None:
    """Use the token up. Raises PermanentError `upload-not-allowed` when somebody else has meanwhile."""
    used = session.execute(
        text(
            "update core.uploads set stored_at = :now "
            "where tenant_id = :tenant and upload_id = :upload and stored_at is null"
        ),
        {"tenant": tenant_id, "upload": upload_id, "now": now},
    ).rowcount  # type: ignore[attr-defined]
    if not used:
        raise not_allowed()


def find_upload(session: Session, principal: Principal, upload_id: UUID) -> Upload | None:
    """An upload that this member has ordered, for a day or so; None for any other."""
    row = session.execute(
        text(
            "select upload_id, file_name, media_type, content_hash, bytes, created_at from core.uploads "
            "where tenant_id = :tenant and upload_id = :upload and member_id = :member"
        ),
        {"tenant": principal.tenant_id, "upload": upload_id, "member": principal.member_id},
    ).first()
    return Upload(*row) if row else None


def arrived(upload: Upload, tenant_id: UUID, storage: Storage) -> str:
    """The URI of what was uploaded, made new so that the collector leaves it alone.

    Raises PermanentError `upload-missing` when nothing of this size is there.
    """
    uri = storage.uri(tenant_id, upload.content_hash)
    blob = storage.refresh(tenant_id, uri)
    if blob is None or blob.size != upload.size:
        raise PermanentError(
            "upload-missing", "The file has not arrived in the object store.", "Upload it, then say so again."
        )
    return uri


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def not_allowed() -> PermanentError:
    """There is no such upload any more, or there never was one."""
    return PermanentError(
        "upload-not-allowed",
        "This address takes no upload: it is unknown, used, or its time is over.",
        "Ask for a new one.",
    )
