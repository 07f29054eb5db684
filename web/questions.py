"""Questions: the page, asking, the answer as a stream and as a whole."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, abort, g, jsonify, render_template, request, stream_with_context, url_for
from flask_babel import gettext as _

from shared.conversations.feedback import give_feedback
from shared.conversations.history import recent_conversations
from shared.conversations.runs import Run, RunEvent, ask, conversation_runs, events_after, read_run, recent_runs
from shared.conversations.waiting import cancel
from shared.database import tenant_session
from shared.documents.acting import CURATING_ROLES
from shared.tenants.directory import Principal
from web import problems, sign_in, streams
from web.context import principal, services
from web.languages import explain
from web.traces import traced
from web.words import page_words

blueprint = Blueprint("questions", __name__)

ENDED = frozenset({"answered", "failed", "cancelled"})
LARGEST_SEQ = 2**31 - 1
_KEY = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@blueprint.get("/")
def home() -> str:
    """The one page: ask, answers, documents. For whoever is signed out, the sign-in page."""
    if g.principal is None:
        return sign_in.page()
    limit = services().settings.document_max_bytes
    return render_template(
        "home.html",
        principal=principal(),
        words=page_words(),
        limit=limit,
        limit_in_words=problems.size_in_words(limit),
        curates=principal().role in CURATING_ROLES,
    )


@blueprint.post("/questions")
@traced("question")
def create() -> Response | tuple[Response, int, dict[str, str]]:
    """Ask: JSON `{"question": …, "conversation_id": …}`, the latter to continue one; 201 with the run.

    The same `Idempotency-Key` is the same run; with another question it is 409.
    """
    body = _body()
    key = request.headers.get("Idempotency-Key", "")
    try:
        question, conversation = body["question"], _conversation(body)
    except (KeyError, ValueError):
        question = conversation = None
    if not isinstance(question, str) or (key and not _KEY.fullmatch(key)):
        return problems.problem(
            400, "malformed-request", _("The request cannot be answered."), _("Send a question as JSON.")
        )
    with tenant_session(principal().tenant_id) as session:
        run_id = ask(session, principal(), question, conversation_id=conversation, idempotency_key=key)
    location = url_for("questions.show", run_id=run_id)
    return jsonify(_run(_find(principal(), run_id))), 201, {"Location": location}


@blueprint.get("/runs")
def index() -> Response:
    """The member's last questions, newest first."""
    with tenant_session(principal().tenant_id) as session:
        runs = recent_runs(session, principal())
    fields = ("id", "question", "state", "no_evidence", "created_at")
    return jsonify(runs=[{name: _run(run)[name] for name in fields} for run in runs])


@blueprint.get("/conversations")
def conversations() -> Response:
    """The member's conversations, the one with the newest question first; `run_id` is that question."""
    with tenant_session(principal().tenant_id) as session:
        found = recent_conversations(session, principal())
    return jsonify(
        conversations=[
            {
                "id": str(one.conversation_id),
                "title": one.title,
                "questions": one.questions,
                "run_id": str(one.run_id),
                "state": one.state,
                "no_evidence": bool(one.no_evidence),
                "asked_at": one.asked_at.isoformat(),
            }
            for one in found
        ]
    )


@blueprint.get("/conversations/<uuid:conversation_id>")
def conversation(conversation_id: UUID) -> Response:
    """The last runs of a conversation of the member, oldest first, or 404, also for somebody else's."""
    with tenant_session(principal().tenant_id) as session:
        runs = conversation_runs(session, principal(), conversation_id)
    if not runs:
        abort(404)
    return jsonify(runs=[_run(run) for run in runs])


@blueprint.get("/runs/<uuid:run_id>")
def show(run_id: UUID) -> Response:
    """A run of the member with answer and citations, or 404, also for somebody else's."""
    return jsonify(_run(_find(principal(), run_id)))


@blueprint.post("/runs/<uuid:run_id>/cancel")
def stop(run_id: UUID) -> Response:
    """Cancel a question of the member; the run as it is now, also when it had ended already."""
    who = principal()
    try:
        with tenant_session(who.tenant_id) as session:
            cancel(session, who, run_id)
    except LookupError:
        abort(404)
    return jsonify(_run(_find(who, run_id)))


@blueprint.put("/runs/<uuid:run_id>/feedback")
def judge(run_id: UUID) -> Response | tuple[Response, int, dict[str, str]]:
    """Say what an answer was worth: JSON `{"rating": "up" | "down", "comment": …}`; the last word counts."""
    body, who = _body(), principal()
    rating, comment = body.get("rating"), body.get("comment", "")
    if rating not in ("up", "down") or not isinstance(comment, str):
        return problems.problem(
            400, "malformed-request", _("The request cannot be answered."), _("Send a rating, up or down.")
        )
    try:
        with tenant_session(who.tenant_id) as session:
            give_feedback(session, who, run_id, rating, comment)
    except LookupError:
        abort(404)
    return jsonify(rating=rating)


@blueprint.get("/runs/<uuid:run_id>/events")
def events(run_id: UUID) -> Response:
    """The run as server-sent events after `Last-Event-ID` (or `?after=`); the last one carries the whole run."""
    who = principal()
    _find(who, run_id)

    def read(after: int) -> list[RunEvent]:
        with tenant_session(who.tenant_id) as session:
            found = events_after(session, who, run_id, after)
        return [_whole(who, run_id, event) for event in found]

    def ending(seq: int) -> RunEvent | None:
        run = _find(who, run_id)
        if run.state not in ENDED:
            return None
        return RunEvent(seq, "answer" if run.state == "answered" else run.state, _run(run))

    place = streams.PLACES.one(who.tenant_id)
    frames = stream_with_context(streams.run_events(read, ending, _last_seen(), place=place))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(frames, mimetype="text/event-stream", headers=headers)


def _body() -> dict[str, Any]:
    body = request.get_json(silent=True)
    return body if isinstance(body, dict) else {}


def _conversation(body: dict[str, Any]) -> UUID | None:
    """The conversation to continue. Raises ValueError when what is named is no id."""
    given = body.get("conversation_id")
    return None if given is None else UUID(str(given))


def _last_seen() -> int:
    # The header first: a browser that reconnects repeats the address, with the `after` of its first visit.
    for given in (request.headers.get("Last-Event-ID", ""), request.args.get("after", "")):
        if given.isascii() and given.isdigit() and len(given) <= 10:
            return min(int(given), LARGEST_SEQ)
    return 0


def _whole(who: Principal, run_id: UUID, event: RunEvent) -> RunEvent:
    """The event as pages need it: the last one brings the stored answer, which replaces the draft."""
    if event.kind not in streams.LAST:
        return event
    return RunEvent(event.seq, event.kind, _run(_find(who, run_id)))


def _find(who: Principal, run_id: UUID) -> Run:
    with tenant_session(who.tenant_id) as session:
        run = read_run(session, who, run_id)
    if run is None:
        abort(404)
    return run


def _run(run: Run) -> dict[str, Any]:
    message, next_action = _why(run)
    return {
        "id": str(run.run_id),
        "conversation_id": str(run.conversation_id),
        "question": run.question,
        "state": run.state,
        "answer": run.answer,
        "no_evidence": bool(run.no_evidence),
        "partial": run.partial,
        "findings": list(run.findings),
        "waiting_for": run.waiting_for,
        "cost_eur": f"{run.cost_eur:f}",
        "model": run.model,
        "reason": run.reason,
        "message": message,
        "next_action": next_action,
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "citations": [
            {
                "number": citation.number,
                "document_id": str(citation.document_id),
                "chunk_id": str(citation.chunk_id),
                "title": citation.title,
                "heading_path": list(citation.heading_path),
                "page": citation.page,
                "quote": citation.quote,
                "quote_start": citation.quote_start,
                "quote_end": citation.quote_end,
            }
            for citation in run.citations
        ],
    }


def _why(run: Run) -> tuple[str, str]:
    if run.state == "cancelled":
        return _("The question was cancelled."), _("Ask it again.")
    if run.state != "failed":
        return "", ""
    message, next_action = explain(run.reason or "", run.message or "")
    return message or _("The question could not be answered."), next_action
