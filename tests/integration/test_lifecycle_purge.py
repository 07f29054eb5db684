"""A purge leaves nothing of a document, and proves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.documents.hard_deletion import TracesLeft, purge_documents
from shared.documents.purge_requests import approve_purge, carry_out, find_request, purge_alone, request_purge
from shared.documents.traces import KEPT, needles_of, search_traces
from shared.errors import PermanentError
from shared.fakes import FakeBus, FakeStorage
from shared.messaging import publish
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import acts, count, document_id, embed_all, found, make, submission, take
from tests.integration.purge_material import OTHER, SECRET, ask_about, operator, see


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
