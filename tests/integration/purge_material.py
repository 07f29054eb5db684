"""Runs that quote a document, and the operator who purges it for good."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import text

from shared.conversations.runs import Run, read_run
from shared.database import operator_session, tenant_session
from shared.documents.acting import Actor, as_operator
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id

SECRET = "the merger with the Aardvark company closes on the fourth of May"
OTHER = "the canteen opens at noon and serves soup every single day"


def operator(tenant: Principal, login: str = "olga") -> Actor:
    """An operator who acts on the tenant's documents."""
    return as_operator(tenant.tenant_id, login)


def ask_about(tenant: Principal, external_id: str, quote: str, *, state: str = "answered", acted: bool = False) -> UUID:
    """A run that read a document and, when it is answered, quotes it; as the agent leaves it behind."""
    run, conversation, which = uuid4(), uuid4(), document_id(tenant, external_id)
    values: dict[str, Any] = {
        "t": tenant.tenant_id,
        "r": run,
        "c": conversation,
        "m": tenant.member_id,
        "d": which,
        "v": uuid5(which, "version:1"),
        "k": uuid5(uuid5(which, "version:1"), "chunk:0"),
        "q": quote,
        "thread": str(run),
        "blob": f"passages: {which} {quote}".encode(),
        "state": state,
        "answer": f"It says: {quote} [1]" if state == "answered" else None,
        "token": json.dumps({"text": quote, "attempt": 1}),
    }
    statements = [
        "insert into core.conversations (tenant_id, conversation_id, member_id, title) values (:t, :c, :m, 'what?')",
        "insert into core.runs (tenant_id, run_id, conversation_id, member_id, question, state, answer, epoch, "
        "traceparent) values (:t, :r, :c, :m, 'what?', :state, :answer, 1, '')",
        "insert into core.run_events (tenant_id, run_id, seq, kind, data) values (:t, :r, 1, 'token', "
        "cast(:token as jsonb))",
        "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, kind, checkpoint, metadata) "
        "values (:t, :thread, '', '1', 'msgpack', :blob, '{}')",
        "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, "
        "position, channel, kind, value) values (:t, :thread, '', '1', 'x', '', 0, 'passages', 'msgpack', :blob)",
        "insert into core.checkpoint_parts (tenant_id, thread_id, checkpoint_ns, channel, first, kind, value) "
        "values (:t, :thread, '', 'passages', 0, 'msgpack', :blob)",
        "insert into core.model_calls (tenant_id, run_id, call_key, model, reply, input_tokens, output_tokens, "
        "cost_eur) values (:t, :r, 'generate', 'm', jsonb_build_object('text', cast(:q as text)), 1, 1, 0)",
    ]
    if state == "answered":
        statements.append(
            "insert into core.citations (tenant_id, run_id, number, document_id, version_id, chunk_id, title, "
            "heading_path, page, quote, quote_start, quote_end) values (:t, :r, 1, :d, :v, :k, 'Secret', '[\"A\"]', 7, "
            ":q, 0, 3)"
        )
    if acted:
        statements.append(
            "insert into core.tool_calls (tenant_id, run_id, call_key, name, state, arguments, result) values "
            "(:t, :r, '1', 'update', 'finished', '{}', jsonb_build_object('seen', cast(:q as text)))"
        )
    with operator_session() as session:
        for statement in statements:
            session.execute(text(statement), values)
    return run


def see(tenant: Principal, run: UUID) -> Run:
    """A run as its member sees it."""
    with tenant_session(tenant.tenant_id) as session:
        shown = read_run(session, tenant, run)
    assert shown is not None
    return shown
