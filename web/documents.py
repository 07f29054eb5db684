"""Documents: taking uploads, telling their states, showing the passage behind a citation."""

from __future__ import annotations

import re
import threading
from typing import Any
from uuid import UUID

from flask import Blueprint, abort, jsonify, request
from flask.wrappers import Response
from flask_babel import gettext as _

from shared.database import tenant_session
from shared.documents.reading import (
    ChunkView,
    DocumentRow,
    list_documents,
    read_chunk,
    read_document,
    submit_upload,
)
from web import problems
from web.context import principal, services
from web.file_names import clean_file_name
from web.languages import explain

blueprint = Blueprint("documents", __name__)

LIST_LIMIT = 200

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,63}/[\w.+-]{1,63}", re.ASCII)
"""What the browser says a file is: a hint for parsing, which looks at the content."""

_uploads = threading.BoundedSemaphore(4)
"""An upload is in memory whole while it is stored; thirty at once would be more than the service's memory."""


@blueprint.get("/documents")
def index() -> Response:
    """The documents the member may see, last changed first."""
    with tenant_session(principal().tenant_id) as session:
        rows = list_documents(session, principal(), LIST_LIMIT)
    return jsonify(documents=[_document(row) for row in rows if row.state != "deleted"])


@blueprint.get("/documents/<uuid:document_id>")
def show(document_id: UUID) -> Response:
    """One document, or 404, also for one that the member may not see."""
    with tenant_session(principal().tenant_id) as session:
        row = read_document(session, principal(), document_id)
    if row is None or row.state == "deleted":
        abort(404)
    return jsonify(_document(row))


@blueprint.post("/documents")
def upload() -> Response | tuple[Response, int]:
    """Take one file (multipart, field `file`); 201 with the document in state `received`."""
    sent = request.files.get("file")
    name = clean_file_name(sent.filename or "") if sent else ""
    if sent is None or not name:
        return problems.problem(400, "no-file", _("No file was sent."), _("Choose a file and upload it again."))
    limit = services().settings.document_max_bytes
    with _uploads:
        data = sent.stream.read(limit + 1)
        if len(data) > limit:
            return problems.document_too_large()
        if not data:
            return problems.problem(
                422, "empty-document", _("The file is empty."), _("Check the file and upload one with content.")
            )
        row = _submit(name, data, sent.mimetype if _MEDIA_TYPE.fullmatch(sent.mimetype) else "")
    return jsonify(_document(row)), 201


def _submit(name: str, data: bytes, media_type: str) -> DocumentRow:
    version = int(services().clock.now().timestamp() * 1_000_000)
    with tenant_session(principal().tenant_id) as session:
        document_id = submit_upload(session, principal(), services().storage, name, data, media_type, version=version)
    with tenant_session(principal().tenant_id) as session:
        row = read_document(session, principal(), document_id)
    if row is None:  # the same name is on another's access list: stored as a new version, but not shown
        abort(404)
    return row


@blueprint.get("/chunks/<uuid:chunk_id>")
def passage(chunk_id: UUID) -> Response:
    """The passage behind a citation, or 404, also for one that the member may not see."""
    with tenant_session(principal().tenant_id) as session:
        chunk = read_chunk(session, principal(), chunk_id)
    if chunk is None:
        abort(404)
    return jsonify(_passage(chunk))


def _document(row: DocumentRow) -> dict[str, Any]:
    message, next_action = explain(row.reason or "", row.message or "", row.next_action or "")
    return {
        "id": row.document_id,
        "title": row.title,
        "file": row.external_id,
        "state": row.state,
        "chunks": row.chunks or 0,
        "chunks_done": row.chunks_done or 0,
        "bytes": row.bytes or 0,
        "reason": row.reason,
        "message": message,
        "next_action": next_action,
        "updated_at": row.updated_at.isoformat(),
    }


def _passage(chunk: ChunkView) -> dict[str, Any]:
    return {
        "id": chunk.chunk_id,
        "document_id": chunk.document_id,
        "title": chunk.title,
        "text": chunk.text,
        "heading_path": chunk.heading_path,
        "current": chunk.current,
    }
