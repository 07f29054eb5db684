"""A tenant with something in nearly every table, and what the database holds of all the others."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from functions.embed.embedding import embed_chunks
from functions.ingest.ingestion import ingest_document
from shared import audit
from shared.conversations.runs import ask
from shared.database import operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.events import DocumentSubmitted, EmbedChunks, Message, decode
from shared.fakes import FakeBus
from shared.money.budgets import set_budget
from shared.services import Services
from shared.tenants import catalogue
from shared.tenants.directory import Principal, add_member, add_to_group


def submission(tenant: Principal, name: str, body: str, version: int = 1, uri: str | None = None) -> DocumentSubmitted:
    """A small Markdown document, inline unless it has a URI."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=name,
        source_version=version,
        file_name=f"{name}.md",
        content=None if uri else base64.b64encode(body.encode()).decode(),
        uri=uri,
    )


def sent(bus: FakeBus) -> list[Message]:
    """What was published, each once."""
    found = [decode(message.data.encode(), message.attributes) for message in bus.published]
    bus.published.clear()
    return found


def live(tenant: Principal, services: Services, bus: FakeBus, documents: int = 3) -> list[Message]:
    """Let a tenant submit, embed, ask, fail, wait and pay; returns every message that was on its way."""
    messages: list[Message] = []
    for number in range(documents):
        event = submission(tenant, f"doc-{number}", f"# Kapitel {number}\n\nDie Pumpe {number} von {tenant.email}.\n")
        messages.append(event)
        ingest_document(event, "upstream", services)
    for message in sent(bus):
        messages.append(message)
        if isinstance(message, EmbedChunks):
            embed_chunks(message, services)
    messages += sent(bus)
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Was ist mit der Pumpe?")
    messages += sent(bus)
    bus.down = True  # what follows stays in the outbox
    with tenant_session(tenant.tenant_id) as session:
        ask(session, tenant, "Und mit dem Ventil?")
    bus.down = False
    with operator_session() as session:
        add_to_group(session, tenant.tenant_id, "engineers", _second_member(session, tenant))
        set_budget(session, tenant.tenant_id, "month", Decimal(100))
        for statement in _ROWS:
            session.execute(text(statement), {"t": tenant.tenant_id, "run": run_id, "m": tenant.member_id})
        archive(session, letters(tenant))
        audit.record(
            session,
            actor=tenant.email,
            action="budget-set",
            subject=f"{tenant.tenant_id}/month",
            tenant_id=tenant.tenant_id,
            secret="the pump",
        )
        audit.record(session, actor="schedule", action="job-done", subject="x", slots=[str(tenant.tenant_id)])
    fill(tenant.tenant_id)
    return messages


def fill(tenant_id: UUID) -> None:
    """Put a made-up row into every table of the tenant that is still empty, as far as its constraints can be guessed:
    so that a table that somebody adds is erased and exported in these tests as well."""
    with operator_session() as session:
        names = [table.name for table in catalogue.tenant_tables(session)]
        order, _ = catalogue.deletion_order(names, catalogue.references(session))
    for name in reversed(order):
        with contextlib.suppress(DBAPIError), operator_session() as session:
            if not session.execute(text(f"select 1 from {name} where tenant_id = :t"), {"t": tenant_id}).scalar():
                values = _made_up(session, name, tenant_id)
                columns = ", ".join(f'"{column}"' for column in values)
                session.execute(text(f"insert into {name} ({columns}) values ({', '.join(values.values())})"))


def _made_up(session: Session, name: str, tenant_id: UUID) -> dict[str, str]:
    """SQL values for the columns that must have one; references are taken from rows that are there."""
    values = {"tenant_id": f"'{tenant_id}'"}
    references = session.execute(
        text(
            "select confrelid::regclass::text as parent, "
            "array(select attname::text from unnest(conkey) with ordinality k(n, o) "
            "join pg_attribute on attrelid = conrelid and attnum = n order by o) as mine, "
            "array(select attname::text from unnest(confkey) with ordinality k(n, o) "
            "join pg_attribute on attrelid = confrelid and attnum = n order by o) as theirs "
            "from pg_constraint where conrelid = cast(:name as regclass) and contype = 'f'"
        ),
        {"name": name},
    ).all()
    columns = session.execute(
        text(
            "select attname, format_type(atttypid, null) as type from pg_attribute "
            "where attrelid = cast(:n as regclass) and attnum > 0 and attnotnull and not atthasdef and not attisdropped"
        ),
        {"n": name},
    ).all()
    rules = " ".join(
        session.scalars(
            text("select pg_get_constraintdef(oid) from pg_constraint where conrelid = cast(:n as regclass) "
                 "and contype = 'c'"),
            {"n": name},
        )
    )  # fmt: skip
    for reference in references:
        if any(column in {c.attname for c in columns} - {"tenant_id"} for column in reference.mine):
            mine = ", ".join(f'cast("{column}" as text)' for column in reference.theirs)
            whose = f"where tenant_id = '{tenant_id}'" if "tenant_id" in reference.mine else ""
            row = session.execute(text(f"select {mine} from {reference.parent} {whose} limit 1")).first()
            values |= {column: f"'{value}'" for column, value in zip(reference.mine, row or (), strict=False)}
    for column in columns:
        allowed = re.search(rf"\({column.attname} = ANY \(ARRAY\['([^']+)'", rules)
        guess = f"'{allowed[1]}'" if allowed else _GUESSES.get(column.type, "'1'")
        values.setdefault(column.attname, guess)
    return values


_GUESSES = {
    "uuid": "gen_random_uuid()",
    "jsonb": "'{}'",
    "timestamp with time zone": "now()",
    "boolean": "true",
    "bytea": "'secret'",
    "text[]": "'{secret}'",
    "uuid[]": "'{}'",
    "interval": "'1 day'",
}


def _second_member(session: Any, tenant: Principal) -> UUID:
    return add_member(session, tenant.tenant_id, f"second-{tenant.email}", name="Second")


def letters(tenant: Principal) -> Iterable[DeadLetter]:
    """One of the tenant, one that cannot be read and only names it."""
    event = submission(tenant, "dead", "never read")
    yield DeadLetter(
        "ingest-upstream", uuid4().hex, event.data(), event.attributes(), "poison", "corrupt", "It failed."
    )
    garbage = b"{broken " + str(tenant.tenant_id).encode()
    yield DeadLetter("ingest-upstream", uuid4().hex, garbage, {}, "poison", "malformed-message", "It failed.")


_ROWS = (
    "insert into core.run_events (tenant_id, run_id, seq, kind, data) values (:t, :run, 900, 'token', '{\"text\": 1}')",
    "insert into core.citations select :t, :run, 1, document_id, version_id, chunk_id, 'T', '[]', 1, 'quote', 0, 5 "
    "from rag.chunks where tenant_id = :t limit 1",
    "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, kind, checkpoint, metadata) "
    "values (:t, cast(:run as text), '', '1', 'json', '\\x7b7d', '{}')",
    "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, "
    "position, channel, kind, value) values (:t, cast(:run as text), '', '1', '1', '', 0, 'c', 'json', '\\x7b7d')",
    "insert into core.checkpoint_parts (tenant_id, thread_id, checkpoint_ns, channel, first, kind, value) "
    "values (:t, cast(:run as text), '', 'c', 0, 'json', '\\x7b7d')",
    "insert into core.ledger (tenant_id, call_key, model, document_id, version_id, state, reserved_eur) "
    "select :t, gen_random_uuid(), 'm', document_id, version_id, 'reserved', 3 from rag.versions where tenant_id = :t",
    "insert into core.waiting_messages (tenant_id, event_id, document_id, version_id, topic, data, attributes) "
    "select :t, gen_random_uuid(), document_id, version_id, 'documents-upstream', 'secret', '{}' from rag.versions "
    "where tenant_id = :t limit 1",
    "insert into core.web_sources (tenant_id, web_source_id, url, kind) "
    "values (:t, gen_random_uuid(), 'https://a.example/sitemap.xml', 'sitemap')",
    "insert into core.web_sources (tenant_id, web_source_id, parent_id, url, kind) "
    "select :t, gen_random_uuid(), web_source_id, 'https://a.example/b.xml', 'sitemap' from core.web_sources "
    "where tenant_id = :t",
    "insert into core.web_pages (tenant_id, page_id, web_source_id, url, origin, document_id) select :t, "
    "gen_random_uuid(), web_source_id, 'https://a.example/', 'https://a.example', gen_random_uuid() "
    "from core.web_sources where tenant_id = :t and parent_id is null",
    "insert into core.uploads (tenant_id, upload_id, member_id, file_name, media_type, content_hash, bytes, "
    "token_hash, expires_at) values (:t, gen_random_uuid(), :m, 'a.pdf', '', 'x', 5, 'y', now())",
    "insert into core.blob_marks values (:t, 'x', '1', now())",
    "insert into rag.term_statistics (tenant_id, term, chunks) values (:t, 1, 1)",
    "insert into rag.corpus_statistics (tenant_id, chunks, average_length) values (:t, 1, 1)",
    "insert into core.job_runs (job, slot, state, lease_until, result) "
    "values (cast(:t as text) || 'x', now(), 'done', now(), jsonb_build_object('tenant', cast(:t as text)))",
)


def rows_of_others(tenant_id: UUID) -> dict[str, str]:
    """A hash of all rows that are not the tenant's, table by table, to the last byte."""
    hashes = {}
    with operator_session() as session:
        for table in catalogue.tables(session):
            # Locks do not change a row, but the audit record and tombstones of this very test are in the platform's.
            others = "tenant_id is distinct from :t" if table.has_tenant else "strpos(cast(r as text), :s) = 0"
            hashes[table.name] = session.execute(
                text(
                    f"select md5(coalesce(string_agg(line, '|' order by line collate \"C\"), '')) from (select "
                    f"md5(cast(r as text)) as line from {table.name} r where {others}) lines"
                ),
                {"t": tenant_id, "s": str(tenant_id)},
            ).scalar_one()
    return hashes


def count_rows(tenant_id: UUID) -> dict[str, int]:
    """The tenant's rows by table."""
    with operator_session() as session:
        return {
            table.name: session.execute(
                text(f"select count(*) from {table.name} where tenant_id = :t"), {"t": tenant_id}
            ).scalar_one()
            for table in catalogue.tenant_tables(session)
        }
