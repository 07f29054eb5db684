"""Large files: ask for an address, send the bytes there, say that it is done.

    POST /uploads                       who may upload what; answers with the address        (member)
    PUT  /uploads/TENANT/UPLOAD?token=  the bytes, where the store has no address of its own  (whoever has the token)
    POST /uploads/UPLOAD/submitted      the document is `received`                            (member)

The bytes are never in memory whole: to the bucket they go directly, here through a file.
"""

from __future__ import annotations

import tempfile
import threading
from typing import Any
from uuid import UUID

from flask import Blueprint, abort, jsonify, request, url_for
from flask.wrappers import Response

from shared.database import tenant_session
from shared.documents import uploads
from shared.documents.reading import read_document, submit_blob
from shared.errors import PermanentError
from web import problems
from web.context import principal, services
from web.documents import MEDIA_TYPE, describe
from web.file_names import clean_file_name
from web.languages import explain

blueprint = Blueprint("uploads", __name__)

IN_MEMORY = 1024 * 1024
"""Bytes of an upload that are kept in memory before they go to a temporary file."""

_receiving = threading.BoundedSemaphore(4)
"""Temporary files are memory on Cloud Run."""


@blueprint.post("/uploads")
def order() -> tuple[Response, int]:
    """Describe a file by `file_name`, `bytes`, `sha256` and, if known, `md5`, `media_type`; 201 with the address."""
    asked = request.get_json(silent=True)
    asked = asked if isinstance(asked, dict) else {}
    name, size = clean_file_name(_text(asked, "file_name")), asked.get("bytes")
    media_type = _text(asked, "media_type")
    terms = uploads.checked_terms(
        _text(asked, "sha256") if name else "",
        size if isinstance(size, int) else 0,
        media_type if MEDIA_TYPE.fullmatch(media_type) else "",
        _text(asked, "md5"),
        services().settings.document_max_bytes,
    )
    storage = services().storage
    signed = storage.sign_upload(principal().tenant_id, terms, uploads.LIFETIME)
    with tenant_session(principal().tenant_id) as session:
        made = uploads.order_upload(session, principal(), name, terms, signed, storage, services().clock.now())
    return jsonify(_address(made)), 201


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    return value if isinstance(value, str) and len(value) <= 1024 else ""


def _address(made: uploads.Ordered) -> dict[str, Any]:
    if made.signed is not None:
        url, method, headers = made.signed.url, made.signed.method, made.signed.headers
    else:
        tenant_id = principal().tenant_id
        url = url_for("uploads.receive", tenant_id=tenant_id, upload_id=made.upload_id, token=made.token)
        method, headers = "PUT", {"Content-Type": "application/octet-stream"}
    return {
        "id": made.upload_id,
        "uri": made.uri,
        "url": url,
        "method": method,
        "headers": headers,
        "expires_at": made.expires_at.isoformat(),
        "submitted": url_for("uploads.submitted", upload_id=made.upload_id),
    }


@blueprint.put("/uploads/<uuid:tenant_id>/<uuid:upload_id>")
def receive(tenant_id: UUID, upload_id: UUID) -> Response:
    """Take the bytes of an upload; 204. The token is all that is asked for, as with a signed URL of the bucket."""
    token, clock, storage = request.args.get("token", ""), services().clock, services().storage
    with tenant_session(tenant_id) as session:
        upload = uploads.open_upload(session, tenant_id, upload_id, token, clock.now())
    if request.content_length != upload.size:
        raise PermanentError(
            "upload-mismatch",
            "The bytes that arrived are not those that were announced.",
            "Upload the file again; it may have changed meanwhile.",
        )
    with _receiving, tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
        uploads.spool(upload, request.stream.read, file)
        storage.put_file(tenant_id, file)
    with tenant_session(tenant_id) as session:
        uploads.close_upload(session, tenant_id, upload_id, clock.now())
    return Response(status=204)


@blueprint.post("/uploads/<uuid:upload_id>/submitted")
def submitted(upload_id: UUID) -> tuple[Response, int] | Response:
    """The file has been uploaded: 201 with the document in state `received`; 404 for somebody else's upload."""
    tenant_id, storage = principal().tenant_id, services().storage
    with tenant_session(tenant_id) as session:
        upload = uploads.find_upload(session, principal(), upload_id)
    if upload is None:
        abort(404)
    uri = uploads.arrived(upload, tenant_id, storage)
    # The time of the order, so that a client that asks twice has submitted once.
    version = int(upload.ordered_at.timestamp() * 1_000_000)
    with tenant_session(tenant_id) as session:
        document_id = submit_blob(session, principal(), uri, upload.file_name, upload.media_type, version=version)
    with tenant_session(tenant_id) as session:
        row = read_document(session, principal(), document_id)
    if row is None:  # the same name is on another's access list: stored as a new version, but not shown
        abort(404)
    return jsonify(describe(row)), 201


STATUS = {"upload-not-allowed": 403, "upload-missing": 409, "too-large": 413}


@blueprint.errorhandler(PermanentError)
def refused(error: PermanentError) -> Response:
    """Why an upload is not taken."""
    message, next_action = explain(error.reason, error.message, error.next_action)
    return problems.problem(STATUS.get(error.reason, 422), error.reason, message, next_action)
