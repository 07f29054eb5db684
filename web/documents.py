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
from shared.documents.acting import as_curator
from shared.documents.cancellation import cancel_ingestion
from shared.documents.deletion import delete_document
from shared.documents.reading import (
    ChunkView,
    DocumentRow,
    list_documents,
    read_chunk,
    read_document,
    submit_blob,
)
from shared.documents.restoring import restore_document
from shared.documents.storing import Batch
from shared.errors import PermanentError
from web import problems
from web.context import principal, services
from web.file_names import clean_file_name
from web.languages import explain
from web.traces import traced

blueprint = Blueprint("documents", __name__)

LIST_LIMIT = 200

MEDIA_TYPE = re.compile(r"[\w.+-]{1,63}/[\w.+-]{1,63}", re.ASCII)
"""What the browser says a file is: a hint for parsing, which looks at the content."""

_uploads = threading.BoundedSemaphore(4)
"""An upload is in memory whole while it is stored; thirty at once would be more than the service's memory."""


@blueprint.get("/documents")
def index() -> Response:
    """The documents the member may see, last changed first."""
    with tenant_session(principal().tenant_id) as session:
        rows = list_documents(session, principal(), LIST_LIMIT)
    return jsonify(documents=[describe(row) for row in rows if row.state != "deleted"])


@blueprint.get("/documents/<uuid:document_id>")
def show(document_id: UUID) -> Response:
    """One document, or 404, also for one that the member may not see."""
    with tenant_session(principal().tenant_id) as session:
        row = read_document(session, principal(), document_id)
    if row is None or row.state == "deleted":
        abort(404)
    return jsonify(describe(row))


@blueprint.post("/documents")
@traced("document")
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
        row = _submit(name, data, sent.mimetype if MEDIA_TYPE.fullmatch(sent.mimetype) else "")
    return jsonify(describe(row)), 201


def _submit(name: str, data: bytes, media_type: str) -> DocumentRow:
    version = int(services().clock.now().timestamp() * 1_000_000)
    # Before the session: no connection waits for a store that takes its time.
    uri = services().storage.put(principal().tenant_id, data)
    with tenant_session(principal().tenant_id) as session:
        document_id = submit_blob(session, principal(), uri, name, media_type, version=version)
    with tenant_session(principal().tenant_id) as session:
        row = read_document(session, principal(), document_id)
    if row is None:  # the same name is on another's access list: stored as a new version, but not shown
        abort(404)
    return row


@blueprint.post("/documents/<uuid:document_id>/delete")
def delete(document_id: UUID) -> Response:
    """Take a document with its attachments out of every answer; 404 also for one that the member may not see."""
    who = principal()
    with tenant_session(who.tenant_id) as session:
        number = delete_document(session, as_curator(who), document_id)
    return jsonify(deleted=number)


@blueprint.post("/documents/<uuid:document_id>/cancel")
def cancel(document_id: UUID) -> Response:
    """Stop what a document has in progress; what answers goes on answering. 404 as for `delete`."""
    who, settings = principal(), services().settings
    with tenant_session(who.tenant_id) as session:
        number = cancel_ingestion(session, as_curator(who), document_id, settings.documents_in_progress)
    return jsonify(cancelled=number)


@blueprint.post("/documents/<uuid:document_id>/restore")
def restore(document_id: UUID) -> Response:
    """Bring a deleted document back, for 30 days; its state is what it is now."""
    who, settings = principal(), services().settings
    with tenant_session(who.tenant_id) as session:
        batch = Batch(settings.batch_size, settings.batch_tokens)
        state = restore_document(session, as_curator(who), document_id, batch)
    return jsonify(state=state)


@blueprint.errorhandler(PermanentError)
def refused(error: PermanentError) -> Response:
    """What a member may not do is 403, what is not there for them 404, any other refusal 422."""
    status = {"not-allowed": 403, "unknown-document": 404}.get(error.reason, 422)
    message, next_action = explain(error.reason, error.message, error.next_action)
    return problems.refuse(status, error.reason, message, next_action)


@blueprint.get("/chunks/<uuid:chunk_id>")
def passage(chunk_id: UUID) -> Response:
    """The passage behind a citation, or 404, also for one that the member may not see."""
    with tenant_session(principal().tenant_id) as session:
        chunk = read_chunk(session, principal(), chunk_id)
    if chunk is None:
        abort(404)
    return jsonify(_passage(chunk))


def describe(row: DocumentRow) -> dict[str, Any]:
    """A document as pages and programs see it."""
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
        "waiting": row.waiting,
        "waiting_until": row.waiting_until.isoformat() if row.waiting_until else None,
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
