"""Attachments share their document's fate at every step: who may see it, its new versions, its withdrawal, its turn."""

from __future__ import annotations

import base64
from email.message import EmailMessage
from typing import Any
from uuid import uuid4, uuid5

import pytest
from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from functions.ingest.ingestion import ingest_document, withdraw_document
from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator, as_operator
from shared.documents.deletion import delete_document
from shared.documents.history import roll_back
from shared.documents.intake import document_id_of, receive
from shared.documents.restoring import restore_document
from shared.documents.turns import next_turns
from shared.errors import PermanentError, Superseded
from shared.events import (
    Access,
    DocumentRemoved,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
    Message,
    TenantMessage,
    decode,
)
from shared.fakes import FakeBus, FakeClock, FakeModels, FakeStorage
from shared.messaging import Outgoing
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal, add_member, add_to_group, memberships
from tests.integration.lifecycle_material import BATCH
from tests.integration.lifecycle_material import found as find

HR, EVERYBODY = Access(groups=("hr",)), Access()
A, B = "The annex names salary band seven.", "The second annex names the bonus."


def mail(*attachments: str, inside: str = "") -> bytes:
    """A mail with text attachments, and perhaps a mail with one of its own."""
    message = EmailMessage()
    message["From"], message["Subject"] = "a@example.org", "Contract"
    message.set_content("The contract is attached.")
    for number, body in enumerate(attachments):
        message.add_attachment(body.encode(), maintype="text", subtype="plain", filename=f"{'ab'[number]}.txt")
    if inside:
        inner = mail(inside)
        message.add_attachment(inner, maintype="application", subtype="octet-stream", filename="inner.eml")
    if message.is_multipart():
        message.set_boundary("inner" if not inside else "outer")  # the same mail has the same bytes
    return message.as_bytes()


def sent(tenant: Principal, version: int, data: bytes, access: Access = EVERYBODY) -> DocumentSubmitted:
    """A version of the mail."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id="mail",
        source_version=version,
        file_name="mail.eml",
        content=base64.b64encode(data).decode(),
        access=access,
    )


def taken(bus: FakeBus, tenant: Principal, *kinds: type[Message]) -> list[Any]:
    """Messages of these kinds; each is returned once."""
    mine: list[tuple[Outgoing, Any]] = []
    rest: list[tuple[Outgoing, Any]] = []
    for outgoing in bus.published:
        message = decode(outgoing.data.encode(), outgoing.attributes)
        matches = isinstance(message, kinds) and isinstance(message, TenantMessage)
        (mine if matches and outgoing.tenant_id == tenant.tenant_id else rest).append((outgoing, message))
    bus.published[:] = [outgoing for outgoing, _ in rest]
    return [message for _, message in mine]


def deliver(services: Services, bus: FakeBus, tenant: Principal) -> None:
    """Everything on the bus goes to its function, until nothing is left."""
    while messages := taken(bus, tenant, DocumentSubmitted, DocumentWithdrawn, EmbedChunks):
        for message in messages:
            try:
                if isinstance(message, DocumentSubmitted):
                    ingest_document(message, "upstream", services)
                elif isinstance(message, DocumentWithdrawn):
                    withdraw_document(message, "upstream")
                else:
                    embed_chunks(message, services)
            except Superseded:
                continue


def bring(services: Services, bus: FakeBus, tenant: Principal, event: DocumentSubmitted) -> None:
    """A version that is searchable with all that is in it."""
    ingest_document(event, "upstream", services)
    deliver(services, bus, tenant)


def documents(tenant: Principal) -> dict[str, Any]:
    """The tenant's documents by external id."""
    with operator_session() as session:
        rows = session.execute(text("select * from rag.documents where tenant_id = :t"), {"t": tenant.tenant_id})
        return {row.external_id: row for row in rows}


def states(tenant: Principal) -> dict[str, str]:
    """Their states."""
    return {name: row.state for name, row in documents(tenant).items()}


@pytest.fixture
def outsider(tenant: Principal) -> Principal:
    """A member of no group that the tests name."""
    email = f"sales@{uuid4().hex}.example"
    with operator_session() as session:
        add_to_group(session, tenant.tenant_id, "sales", add_member(session, tenant.tenant_id, email, name="Sales"))
    return memberships(email)[0]


def test_a_mail_that_is_closed_closes_its_attachments_at_once(
    tenant: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The same bytes for fewer people: from the reception on, before any message about the attachments is handled."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A, inside=B)))
    assert {A, B} <= {one.strip() for one in find(fake_services, outsider, "annex names")}
    with tenant_session(tenant.tenant_id) as session:
        receive(session, sent(tenant, 2, mail(A, inside=B), HR), "upstream")
    assert find(fake_services, outsider, "annex names") == []


def test_attachments_of_the_same_mail_get_its_readers(
    tenant: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Narrower and wider again, at any depth, and nothing is embedded again for it."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A, inside=B)))
    embedded = len(fake_services.models.embedded)  # type: ignore[attr-defined]
    for number, access in ((2, HR), (3, EVERYBODY), (4, HR)):
        bring(fake_services, bus, tenant, sent(tenant, number, mail(A, inside=B), access))
        groups = {tuple(row.access_groups) for row in documents(tenant).values()}
        assert groups == {access.groups}
        assert (find(fake_services, outsider, "annex names") == []) == (access is HR)
    questions = [one for one in fake_services.models.embedded if one == "annex names"]  # type: ignore[attr-defined]
    assert len(fake_services.models.embedded) - embedded == len(questions)  # type: ignore[attr-defined]


def test_the_same_mail_again_sends_no_attachment_again(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """As long as nothing about them changes."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A)))
    ingest_document(sent(tenant, 2, mail(A)), "upstream", fake_services)
    assert taken(bus, tenant, DocumentSubmitted) == []


def test_an_attachment_that_comes_late_is_for_those_who_may_see_its_mail_by_now(
    tenant: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Its message was sent when everybody might; meanwhile the mail was closed, with the same bytes."""
    ingest_document(sent(tenant, 1, mail(A)), "upstream", fake_services)
    (late,) = taken(bus, tenant, DocumentSubmitted)
    deliver(fake_services, bus, tenant)
    bring(fake_services, bus, tenant, sent(tenant, 2, mail(A), HR))
    bring(fake_services, bus, tenant, late)
    assert states(tenant) == {"mail": "searchable", "mail#1/a.txt": "searchable"}
    assert find(fake_services, outsider, "annex names") == []


def test_an_attachment_that_comes_late_is_not_there_if_its_mail_no_longer_has_it(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The mail came again without it before its own message was handled."""
    ingest_document(sent(tenant, 1, mail(A)), "upstream", fake_services)
    (late,) = taken(bus, tenant, DocumentSubmitted)
    bring(fake_services, bus, tenant, sent(tenant, 2, mail()))
    with pytest.raises(Superseded):
        ingest_document(late, "upstream", fake_services)
    assert states(tenant) == {"mail": "searchable"}


def test_a_withdrawn_mail_takes_its_attachments_with_it_at_once(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """At any depth, in one transaction; upstream hears of each; nothing has to be delivered for it."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A, inside=B)))
    bus.published.clear()
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="mail", source_version=1), "upstream")
    assert set(states(tenant).values()) == {"deleted"}
    told = {event.external_id for event in taken(bus, tenant, DocumentRemoved)}
    assert told == set(states(tenant))
    assert len(told) == 4
    assert bus.published == []


def test_a_withdrawn_mail_is_restored_with_its_attachments(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Right away, whatever the bus has not delivered yet; and nothing takes them out again later."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A)))
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="mail", source_version=1), "upstream")
    with tenant_session(tenant.tenant_id) as session:
        mail_id = document_id_of(tenant.tenant_id, "upstream", "mail")
        restore_document(session, as_curator(tenant), mail_id, BATCH)
    deliver(fake_services, bus, tenant)
    assert set(states(tenant).values()) == {"searchable"}


def go_back(tenant: Principal, number: int) -> None:
    """Let a version of the mail answer again."""
    which = document_id_of(tenant.tenant_id, "upstream", "mail")
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_operator(tenant.tenant_id, "olga"), which, uuid5(which, f"version:{number}"))


def test_a_mail_that_is_rolled_back_hides_what_came_with_the_rejected_version(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It was attached by mistake, perhaps inside of a mail; what the old version carried answers again. And back."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A)))
    bring(fake_services, bus, tenant, sent(tenant, 2, mail(inside=B)))
    new = {"mail": "searchable", "mail#1/inner.eml": "searchable", "mail#1/inner.eml#1/a.txt": "searchable"}
    assert states(tenant) == new | {"mail#1/a.txt": "deleted"}
    embedded = len(fake_services.models.embedded)  # type: ignore[attr-defined]
    bus.published.clear()
    go_back(tenant, 1)
    deliver(fake_services, bus, tenant)
    assert states(tenant) == dict.fromkeys(new, "deleted") | {"mail": "searchable", "mail#1/a.txt": "searchable"}
    assert {event.external_id for event in taken(bus, tenant, DocumentRemoved)} == set(new) - {"mail"}
    answers = {one.strip() for one in find(fake_services, tenant, "annex names")}
    assert A in answers
    assert B not in answers
    go_back(tenant, 2)
    assert states(tenant) == new | {"mail#1/a.txt": "deleted"}
    assert len(fake_services.models.embedded) - embedded == 1  # type: ignore[attr-defined] # the question
    bring(fake_services, bus, tenant, sent(tenant, 3, mail(A, inside=B)))
    assert set(states(tenant).values()) == {"searchable", "deleted"}
    assert {A, B} <= {one.strip() for one in find(fake_services, tenant, "annex names")}


def test_a_late_attachment_of_a_rejected_version_stays_away(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The mail was rolled back before its message was handled."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail()))
    ingest_document(sent(tenant, 2, mail(A)), "upstream", fake_services)
    (late,) = taken(bus, tenant, DocumentSubmitted)
    deliver(fake_services, bus, tenant)
    go_back(tenant, 1)
    with pytest.raises(Superseded):
        ingest_document(late, "upstream", fake_services)
    assert states(tenant) == {"mail": "searchable"}


def test_an_attachment_goes_back_to_its_own_text_and_readers(
    tenant: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The same attachment in two versions of a mail: its first text was for few; what people deleted stays deleted."""
    bring(fake_services, bus, tenant, sent(tenant, 1, mail(A, B), HR))
    bring(fake_services, bus, tenant, sent(tenant, 2, mail("The annex is redacted.", B), EVERYBODY))
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id_of(tenant.tenant_id, "upstream", "mail#2/b.txt"))
    go_back(tenant, 1)
    assert states(tenant) == {"mail": "searchable", "mail#1/a.txt": "searchable", "mail#2/b.txt": "deleted"}
    assert find(fake_services, outsider, "annex") == []
    with tenant_session(tenant.tenant_id) as session:
        current = session.execute(
            text(
                "select c.text from rag.chunks c join rag.documents d on d.current_version_id = c.version_id "
                "where d.tenant_id = :t and d.external_id = 'mail#1/a.txt'"
            ),
            {"t": tenant.tenant_id},
        ).scalar_one()
    assert current.strip() == A
    go_back(tenant, 2)
    assert "The annex is redacted." in {one.strip() for one in find(fake_services, outsider, "annex")}


@pytest.mark.parametrize("when", ["before its turn", "before it joins the line"])
def test_an_attachment_that_waits_for_its_turn_goes_with_its_mail(
    tenant: Principal, settings: Settings, bus: FakeBus, when: str
) -> None:
    """The mail is deleted meanwhile: nothing of the attachment is left in the list, nor comes later."""
    one_by_one = settings.model_copy(update={"documents_in_progress": 1})
    services = Services(one_by_one, FakeClock(), _storage=FakeStorage(), _models=FakeModels())
    ingest_document(sent(tenant, 1, mail(A)), "upstream", services)
    (attachment,) = taken(bus, tenant, DocumentSubmitted)
    embedding = taken(bus, tenant, EmbedChunks)
    for name in ("second", "third"):
        other = sent(tenant, 1, b"Some other text.").model_copy(update={"external_id": name, "file_name": "x.txt"})
        ingest_document(other, "upstream", services)
    if when == "before its turn":
        ingest_document(attachment, "upstream", services)
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id_of(tenant.tenant_id, "upstream", "mail"))
    if when == "before it joins the line":
        with pytest.raises(Superseded):
            ingest_document(attachment, "upstream", services)
    for message in embedding:
        embed_chunks(message, services)
    with tenant_session(tenant.tenant_id) as session:
        next_turns(session, tenant.tenant_id, 1)  # as the sweep does: a deletion passes its place on to nobody
    deliver(services, bus, tenant)
    found = states(tenant)
    assert found.pop("mail#1/a.txt", "deleted") == "deleted"
    assert found == {"mail": "deleted", "second": "searchable", "third": "searchable"}


def test_an_attachment_is_no_document_of_upstream_s_own_kind(tenant: Principal, fake_services: Services) -> None:
    """One whose mail is not known is refused for what upstream says, not for what it is called."""
    event = sent(tenant, 1, b"Text.").model_copy(update={"external_id": "mail#1/a.txt", "file_name": "a.txt"})
    ingest_document(event, "upstream", fake_services)
    assert states(tenant) == {"mail#1/a.txt": "ingested"}
    with pytest.raises(PermanentError):
        ingest_document(event, "elsewhere", fake_services)


def test_attachments_are_found_by_an_index(tenant: Principal) -> None:
    """Under row-level security too: nothing else of the tenant is read, however many documents it has."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text("set local enable_seqscan = off"))
        plan = session.execute(
            text(
                "explain select document_id from rag.documents "
                "where tenant_id = :tenant and source = :source and attachment_of = :parent"
            ),
            {"tenant": tenant.tenant_id, "source": "upstream", "parent": "mail"},
        ).scalars()
        (condition,) = [line for line in plan if "Index Cond" in line]
    assert "attachment_of = 'mail'" in condition
