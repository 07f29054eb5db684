"""Deletion for good: nothing is left anywhere, which is proven, and nothing comes back through an old message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import withdraw_document
from functions.maintenance.running import run_job
from shared.conversations.runs import Run, events_after, read_run, recent_runs
from shared.database import operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.documents.acting import Actor, as_curator, as_operator
from shared.documents.deletion import delete_document
from shared.documents.hard_deletion import TracesLeft, purge_documents
from shared.documents.history import read_history, roll_back
from shared.documents.purge_requests import approve_purge, carry_out, find_request, purge_alone, request_purge
from shared.documents.restoring import restore_document
from shared.documents.traces import KEPT, needles_of, search_traces
from shared.documents.turns import join_line
from shared.embeddings import Embedded
from shared.errors import PermanentError, Superseded
from shared.events import AnswerQuestion, DocumentRemoved, DocumentWithdrawn, RunJob, decode
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.messaging import publish
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import (
    BATCH,
    acts,
    age,
    count,
    document_id,
    embed_all,
    found,
    look,
    make,
    submission,
    take,
)

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


def remember(tenant: Principal, services: Services, bus: FakeBus) -> None:
    """Everything that remembers a document: messages in the outbox and the archive, a ledger entry, a page, a line."""
    late = submission(tenant, 1, "secret-plan.pdf")
    with tenant_session(tenant.tenant_id) as session:
        bus.down = True
        publish(session, late, topic="documents-upstream")
    bus.down = False
    letters = [
        DeadLetter("ingest-upstream", "1", late.data(), late.attributes(), "transient", "x", "x"),
        DeadLetter("ingest-upstream", "2", late.data()[:-1], late.attributes(), "poison", "x", "x"),
    ]
    with operator_session() as session:
        archive(session, letters)
        session.execute(
            text(
                "insert into core.web_sources (tenant_id, web_source_id, url, kind) values (:t, :s, 'https://x/', "
                "'page')"
            ),
            {"t": tenant.tenant_id, "s": tenant.tenant_id},
        )
        session.execute(
            text(
                "insert into core.web_pages (tenant_id, page_id, web_source_id, url, origin, state, document_id) "
                "values (:t, :s, :s, 'https://x/', 'https://x', 'fetched', :d)"
            ),
            {"t": tenant.tenant_id, "s": tenant.tenant_id, "d": document_id(tenant, "secret-plan.pdf")},
        )


def dump(tenant: Principal, but: tuple[str, ...] = ()) -> str:
    """Every row of the tenant as text, of every table that has a tenant."""
    from shared.tenants.catalogue import tables

    with operator_session() as session:
        lines = []
        for table in tables(session):
            if table.has_tenant and table.name not in but:
                rows = session.execute(
                    text(f"select row_to_json(x)::text from {table.name} x where tenant_id = :t order by 1"),
                    {"t": tenant.tenant_id},
                ).scalars()
                lines += [f"{table.name} {row}" for row in rows]
    return "\n".join(lines)


def test_nothing_of_a_purged_document_is_left(
    tenant: Principal, make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus
) -> None:
    """No row, vector, word, message, answer, checkpoint or blob; the proof names every table; others keep theirs."""
    stranger = make_tenant()
    for whose in (tenant, stranger):
        uri = fake_services.storage.put(whose.tenant_id, SECRET.encode())
        take(whose, submission(whose, 1, "secret-plan.pdf"), SECRET, blob=uri)
        embed_all(fake_services, bus)
        remember(whose, fake_services, bus)
        ask_about(whose, "secret-plan.pdf", SECRET)
    make(fake_services, bus, tenant, 1, OTHER, external_id="canteen.pdf")
    kept = ask_about(tenant, "canteen.pdf", OTHER)
    untouched = dump(stranger)
    spent = count(tenant, "core.ledger")
    which = document_id(tenant, "secret-plan.pdf")
    done = purge_documents(operator(tenant), [which], fake_services.storage)
    assert (done.documents, done.blobs.deleted) == (1, 1)
    assert done.rows["chunks"] == done.rows["vectors"] == done.rows["citations"] == 1
    assert (done.rows["outbox"], done.rows["dead_letters"], done.rows["pages"]) == (1, 2, 1)
    assert set(done.proof.values()) == {0}
    assert {"rag.chunks", "core.checkpoints", "core.dead_letters", "core.outbox", "core.runs"} <= set(done.proof)
    left = dump(tenant, but=("core.audit", "core.outbox"))
    for trace in (str(which), "secret-plan", "Aardvark", "aardvark", SECRET.encode().hex()):
        assert trace not in left
    assert OTHER in left
    assert see(tenant, kept).answer == f"It says: {OTHER} [1]"
    assert found(fake_services, tenant, "Aardvark merger") != [SECRET]
    assert count(tenant, "core.ledger") == spent
    assert dump(stranger) == untouched
    kept_uri = fake_services.storage.uri(stranger.tenant_id, hashlib.sha256(SECRET.encode()).hexdigest())
    assert fake_services.storage.get(stranger.tenant_id, kept_uri, 1000) == SECRET.encode()
    assert [action for _, action in acts(tenant)] == ["document-deleted", "document-purged"]


def test_the_audit_record_of_a_purge_has_its_proof_and_no_content(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Who, which id, counts and the tables that were searched; neither name nor text."""
    make(fake_services, bus, tenant, 1, SECRET, external_id="secret-plan.pdf")
    which = document_id(tenant, "secret-plan.pdf")
    purge_documents(operator(tenant), [which], fake_services.storage)
    with operator_session() as session:
        row = session.execute(
            text("select actor, subject, details from core.audit where tenant_id = :t and action = 'document-purged'"),
            {"t": tenant.tenant_id},
        ).one()
    assert (row.actor, row.subject) == ("operator:olga", str(which))
    assert set(row.details["proof"].values()) == {0}
    assert len(row.details["proof"]) > 25
    assert row.details["searched"] == {"ids": 3, "external_ids": 1, "passages": 1}
    assert "secret" not in json.dumps(row.details)
    assert "Aardvark" not in json.dumps(row.details)


def test_the_proof_finds_a_trace_wherever_it_is(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """An id, a name in a message or a passage, planted in a table that deletion does not know: nothing is deleted."""
    make(fake_services, bus, tenant, 1, SECRET, external_id="secret-plan.pdf")
    which = document_id(tenant, "secret-plan.pdf")
    with operator_session() as session:
        needles = needles_of(session, tenant.tenant_id, [which])
    plants = [
        ("core.conversations", "title", f"about {which}"),
        ("core.conversations", "title", f"he wrote: {SECRET}, she said"),
        ("core.members", "name", json.dumps({"external_id": "secret-plan.pdf"})),
    ]
    run = ask_about(tenant, "no-such-document", "nothing")
    for table, column, value in plants:
        with operator_session() as session:
            session.execute(
                text(f"update {table} set {column} = :value where tenant_id = :t"),
                {"t": tenant.tenant_id, "value": value},
            )
            assert search_traces(session, tenant.tenant_id, needles)[table] == 1
        with pytest.raises(TracesLeft, match=table):
            purge_documents(operator(tenant), [which], fake_services.storage)
        assert count(tenant, "rag.chunks") == 1
        with operator_session() as session:
            session.execute(text(f"update {table} set {column} = 'x' where tenant_id = :t"), {"t": tenant.tenant_id})
    assert see(tenant, run).answer is not None
    assert purge_documents(operator(tenant), [which], fake_services.storage).documents == 1


def test_every_table_with_a_tenant_is_searched(tenant: Principal) -> None:
    """But for the audit record and the tombstones, which may name what was deleted."""
    from shared.tenants.catalogue import tables

    with operator_session() as session:
        make_needles = needles_of(session, tenant.tenant_id, [uuid4()])
        searched = search_traces(session, tenant.tenant_id, make_needles)
        assert {table.name for table in tables(session) if table.has_tenant} - set(searched) == KEPT


def test_what_two_documents_share_is_no_trace(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The same text and the same blob stay with the other document, and so do answers that quote it."""
    uri = fake_services.storage.put(tenant.tenant_id, SECRET.encode())
    for external_id in ("one.pdf", "two.pdf"):
        take(tenant, submission(tenant, 1, external_id), SECRET, blob=uri)
        embed_all(fake_services, bus)
    kept = ask_about(tenant, "two.pdf", SECRET)
    done = purge_documents(operator(tenant), [document_id(tenant, "one.pdf")], fake_services.storage)
    assert SECRET in (see(tenant, kept).answer or "")
    assert (done.documents, done.blobs.deleted, done.blobs.shared) == (1, 0, 1)
    assert found(fake_services, tenant, "Aardvark") == [SECRET]
    assert fake_services.storage.get(tenant.tenant_id, uri, 1000) == SECRET.encode()


def test_words_that_only_a_purged_document_had_are_forgotten(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The vocabulary for typing errors would tell them otherwise."""
    make(fake_services, bus, tenant, 1, SECRET)
    make(fake_services, bus, tenant, 1, OTHER, external_id="other")
    assert count(tenant, "rag.vocabulary", "stem like 'aardvar%'") >= 1
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert count(tenant, "rag.vocabulary", "stem like 'aardvar%'") == 0
    assert count(tenant, "rag.vocabulary", "stem like 'canteen%'") >= 1


def test_what_was_purged_never_comes_back(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Not by a repeat, not by what was sent before, not by way of the line; a newer submission is a new document."""
    make(fake_services, bus, tenant, 4, SECRET)
    before = submission(tenant, 9)
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    for event in (before, submission(tenant, 4), submission(tenant, 1)):
        with pytest.raises(Superseded):
            take(tenant, event, SECRET)
        with tenant_session(tenant.tenant_id) as session:
            assert not join_line(session, event, "upstream")
        assert look(tenant) is None
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=6), "upstream")
    assert look(tenant) is None
    with pytest.raises(Superseded):
        take(tenant, submission(tenant, 6), SECRET)
    make(fake_services, bus, tenant, 7, OTHER)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 7)


def test_a_tombstone_tells_nothing(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """It is the SHA-256 of tenant, source and external id."""
    make(fake_services, bus, tenant, 4, SECRET)
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    with operator_session() as session:
        row = session.execute(
            text("select key, source_version from rag.tombstones where tenant_id = :t"), {"t": tenant.tenant_id}
        ).one()
    assert bytes(row.key) == hashlib.sha256(f"{tenant.tenant_id}\nupstream\ndoc".encode()).digest()
    assert row.source_version == 4


def test_upstream_is_told_that_a_living_document_was_purged(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Once; also when the bus was down, for that message is not deleted with the others."""
    make(fake_services, bus, tenant, 1, SECRET)
    bus.down = True
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    bus.down = False
    with operator_session() as session:
        rows = session.execute(
            text("select data, attributes from core.outbox where tenant_id = :t"), {"t": tenant.tenant_id}
        ).all()
    messages = [decode(row.data.encode(), row.attributes) for row in rows]
    assert [type(message) for message in messages] == [DocumentRemoved]
    assert purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage).documents == 0


def test_answers_that_quote_a_deleted_document_are_withheld_until_it_is_restored(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Text, title, place, quotation and draft; after a purge they are gone from the database too."""
    make(fake_services, bus, tenant, 1, SECRET)
    run = ask_about(tenant, "doc", SECRET)
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant))
    shown = see(tenant, run)
    assert SECRET not in (shown.answer or "")
    assert "deleted" in (shown.answer or "")
    (citation,) = shown.citations
    assert (citation.title, citation.quote, citation.page, citation.heading_path) == ("Deleted document", "", None, ())
    with tenant_session(tenant.tenant_id) as session:
        assert SECRET not in str(events_after(session, tenant, run, 0))
        assert SECRET not in str(recent_runs(session, tenant))
        restore_document(session, as_curator(tenant), document_id(tenant), BATCH)
    assert see(tenant, run).citations[0].quote == SECRET
    assert SECRET in (see(tenant, run).answer or "")
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert "deleted" in (see(tenant, run).answer or "")
    assert see(tenant, run).citations == ()


def test_a_run_that_read_a_purged_document_begins_anew(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Under a new epoch and without what it had read; one that has called a tool ends instead of calling it again."""
    make(fake_services, bus, tenant, 1, SECRET)
    reading = ask_about(tenant, "doc", SECRET, state="running")
    acting = ask_about(tenant, "doc", SECRET, state="waiting", acted=True)
    elsewhere = ask_about(tenant, "another", OTHER, state="queued")
    bus.published.clear()
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert done.rows["restarted_runs"] == done.rows["ended_runs"] == 1
    assert see(tenant, reading).state == "queued"
    assert (see(tenant, acting).state, see(tenant, acting).reason) == ("failed", "source-deleted")
    assert count(tenant, "core.checkpoints") == 1
    again = [decode(m.data.encode(), m.attributes) for m in bus.published]
    assert [m.run_id for m in again if isinstance(m, AnswerQuestion)] == [reading]
    with operator_session() as session:
        rows = session.execute(
            text("select run_id, epoch from core.runs where tenant_id = :t"), {"t": tenant.tenant_id}
        )
        epochs = {row.run_id: row.epoch for row in rows}
    assert epochs[reading] == 2
    assert epochs[elsewhere] == 1


def test_a_run_that_holds_a_purged_document_only_in_a_part_begins_anew(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Passages lie beside the checkpoint of a run: they are found there, and erased."""
    make(fake_services, bus, tenant, 1, SECRET)
    waiting = ask_about(tenant, "doc", SECRET, state="waiting")
    with operator_session() as session:
        ids = {"t": tenant.tenant_id}
        session.execute(text("update core.checkpoints set checkpoint = '' where tenant_id = :t"), ids)
        session.execute(text("delete from core.checkpoint_writes where tenant_id = :t"), ids)
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert done.rows["restarted_runs"] == 1
    assert see(tenant, waiting).state == "queued"
    assert count(tenant, "core.checkpoint_parts") == count(tenant, "core.checkpoints") == 0


def test_a_batch_that_is_being_embedded_when_its_document_is_purged_ends_quietly(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What the model answered is paid for and thrown away; no vector is left without its chunk."""

    class Slow(FakeModels):
        def embed_counted(self, *arguments: Any, **options: Any) -> Embedded:
            purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
            return super().embed_counted(*arguments, **options)

    take(tenant, submission(tenant, 1), SECRET)
    embed_all(replace(fake_services, _models=Slow()), bus)
    assert look(tenant) is None
    assert count(tenant, "rag.embeddings") == 0
    assert count(tenant, "core.ledger", "state = 'settled'") == 1


def test_a_restore_after_a_purge_finds_no_document(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The same answer as for a document that never was."""
    make(fake_services, bus, tenant, 1, SECRET)
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    with pytest.raises(PermanentError) as gone, tenant_session(tenant.tenant_id) as session:
        restore_document(session, as_curator(tenant), document_id(tenant), BATCH)
    assert gone.value.reason == "unknown-document"


def test_many_documents_take_two_operators(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """One asks, another approves; the database itself refuses the same person; the request goes on where it stopped."""
    names = [f"doc-{n}" for n in range(21)]
    for name in names:
        take(tenant, submission(tenant, 1, name), f"text of {name}")
    ids = [document_id(tenant, name) for name in names]
    with pytest.raises(PermanentError) as alone:
        purge_alone(tenant.tenant_id, "olga", ids, fake_services.storage)
    with operator_session() as session:
        request = request_purge(session, tenant.tenant_id, "olga", ids, "GDPR 17").request_id
    with pytest.raises(PermanentError) as same, operator_session() as session:
        approve_purge(session, request, "olga")
    with pytest.raises(PermanentError) as early:
        next(carry_out(request, fake_services.storage))
    assert [e.value.reason for e in (alone, same, early)] == ["two-people-needed", "same-person", "not-approved"]
    with operator_session() as session:
        approve_purge(session, request, "otto")
    assert next(carry_out(request, fake_services.storage)).left == 11
    assert [step.left for step in carry_out(request, fake_services.storage)] == [1, 0]
    with operator_session() as session:
        assert find_request(session, request).finished_at is not None
    assert count(tenant, "rag.documents") == 0
    told = [action for _, action in acts(tenant)]
    assert told[:1] == ["purge-requested"]
    assert told.count("document-purged") == 21


def test_unknown_documents_cannot_be_purged(tenant: Principal, make_tenant: Callable[..., Principal]) -> None:
    """Neither none, nor another tenant's."""
    for ids in ([uuid4()], []):
        with pytest.raises(PermanentError) as unknown, operator_session() as session:
            request_purge(session, tenant.tenant_id, "olga", ids)
        assert unknown.value.reason == "unknown-document"
    with pytest.raises(PermanentError) as gone:
        purge_alone(tenant.tenant_id, "olga", [uuid4()], FakeStorage())
    assert gone.value.reason == "unknown-document"


def run_purge(services: Services) -> dict[str, Any]:
    """Run the daily job now."""
    counts = run_job(RunJob(job="purge-documents", slot=datetime.now(UTC)), services, seconds=None)
    return dict(counts or {})


def test_the_daily_job_purges_what_was_deleted_30_days_ago(
    tenant: Principal, make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus
) -> None:
    """By a person or by upstream, of every tenant; a younger deletion can still be restored."""
    run_purge(fake_services)  # what other tests left
    second = make_tenant()
    for whose in (tenant, second):
        make(fake_services, bus, whose, 1, SECRET)
        make(fake_services, bus, whose, 1, OTHER, external_id="young")
        gone = DocumentWithdrawn(tenant_id=whose.tenant_id, external_id="doc", source_version=1)
        withdraw_document(gone, "upstream")
        with tenant_session(whose.tenant_id) as session:
            delete_document(session, as_curator(whose), document_id(whose, "young"))
        age(whose, "rag.documents", "deleted_at", "31 days", "external_id = 'doc'")
    counts = run_purge(fake_services)
    assert (counts["documents"], counts["unproven"]) == (2, 0)
    for whose in (tenant, second):
        assert look(whose) is None
        assert look(whose, "young").state == "deleted"
        assert ("job:purge-documents", "document-expired") in acts(whose)
    assert run_purge(fake_services)["documents"] == 0


def test_one_document_that_cannot_be_proven_gone_does_not_stop_the_others(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It stays, hidden, and is counted; the rest of its slice is purged."""
    for external_id, content in (("doc", SECRET), ("other", OTHER)):
        make(fake_services, bus, tenant, 1, content, external_id=external_id)
        with tenant_session(tenant.tenant_id) as session:
            delete_document(session, as_curator(tenant), document_id(tenant, external_id))
    age(tenant, "rag.documents", "deleted_at", "31 days")
    with operator_session() as session:
        session.execute(
            text("update core.members set name = :name where tenant_id = :t"),
            {"t": tenant.tenant_id, "name": f"{document_id(tenant)}"},
        )
    counts = run_purge(fake_services)
    assert (counts["documents"], counts["unproven"]) == (1, 1)
    assert look(tenant).state == "deleted"
    assert look(tenant, "other") is None
    with operator_session() as session:  # or the next test's job finds it
        session.execute(text("update core.members set name = 'x' where tenant_id = :t"), {"t": tenant.tenant_id})
    assert run_purge(fake_services)["documents"] == 1


def test_old_versions_lose_their_content_and_stay_in_the_history(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The last five keep it whatever their age, younger ones than 30 days too; what answers always does."""
    versions = [make(fake_services, bus, tenant, n, f"text number {n}", "common").version_id for n in range(1, 9)]
    assert run_purge(fake_services)["versions"] == 0
    age(tenant, "rag.versions", "updated_at", "31 days")
    counts = run_purge(fake_services)
    assert (counts["versions"], counts["chunks"]) == (2, 4)
    with tenant_session(tenant.tenant_id) as session:
        rows = read_history(session, as_curator(tenant), document_id(tenant))
    assert [(row.source_version, row.kept) for row in rows] == [(n, n > 2) for n in range(8, 0, -1)]
    assert count(tenant, "rag.embeddings") == count(tenant, "rag.chunk_terms") == count(tenant, "rag.chunks") == 12
    with pytest.raises(PermanentError) as purged, tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), versions[0])
    assert purged.value.reason == "version-purged"
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), versions[2])
    assert look(tenant).current == 3
